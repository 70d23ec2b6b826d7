"""The simulated Compute Engine under Google's own client: its calls go to the state machine instead of a socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from requests.adapters import BaseAdapter

from infra.demo.wire import Answer, Request

Handle = Callable[[Request], Answer]


class Carrier(BaseAdapter):
    """What `GcpCompute(carrier=...)` takes. `handle` may raise what `requests` raises."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle
        self.sent: list[Request] = []
        self.timeouts_s: list[Any] = []

    def send(self, request: Any, *_args: Any, timeout: Any = None, **_more: Any) -> requests.Response:
        url = urlsplit(request.url)
        body = request.body.encode() if isinstance(request.body, str) else request.body or b""
        asked = Request(request.method, url.path, dict(parse_qsl(url.query)), dict(request.headers), body)
        self.sent.append(asked)
        self.timeouts_s.append(timeout)
        answer = self._handle(asked)
        made = requests.Response()
        made.status_code, made._content, made.request, made.url = answer.status, answer.body, request, request.url
        made.headers.update({"Content-Type": answer.content_type, **answer.headers})
        return made

    def close(self) -> None:
        """Nothing is open."""


def service_account_key(key_id: str, project: str = "demo-project") -> str:
    """A key file's content, its private key made now; no token is ever fetched with it."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": project,
            "private_key_id": key_id,
            "private_key": private.decode(),
            "client_email": f"dumont@{project}.iam.gserviceaccount.com",
            "token_uri": "http://127.0.0.1:1/token",
        }
    )
