"""A project of the simulated Compute Engine under the adapter: Google's own client, with or without a socket."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from requests.adapters import BaseAdapter

from common.adapters.gcp import GcpCompute
from common.domain.offer import Offer
from common.domain.region import place_of
from common.domain.standby_price import standby_offers
from common.ports import Launch, Operation
from infra.demo.gcp.compute import PREEMPTION_NOTICE, ComputeSim
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.wire import Answer, Request
from tests.loopback import served

START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
KEY_ID = "sim-key"
PROJECT = "demo-project"
LABEL = "dumont-abc123-i1-7-0a1b2c3d"
ADDRESS = "dumont-abc123-i1"
ZONE = "us-central1-a"
REGION = "us-central1"
MICRO = Decimal("0.000001")
NOTICE_S = PREEMPTION_NOTICE.total_seconds()


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


@cache
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


class Rig:
    """One project: the adapter over its simulator, on a clock of its own."""

    def __init__(self, *, over_http: bool = False) -> None:
        self.now = START
        self.sim = ComputeSim(rng=random.Random(1), key_id=KEY_ID, requests_per_minute=None)
        self._stack = ExitStack()
        self.url = self._serve() if over_http else "http://google.sim"
        self.carrier = None if over_http else Carrier(self.handle)
        self.market = self._made(service_account_key(KEY_ID), self.carrier)
        self.offer = offers()[0]

    def handle(self, request: Request) -> Answer:
        return self.sim.handle(request, self.now)

    def _serve(self) -> str:
        return self._stack.enter_context(served(self.sim, lambda: self.now))

    def with_key(self, key_id: str) -> GcpCompute:
        return self._made(service_account_key(key_id), self.carrier)

    def answering(self, say: Handle) -> GcpCompute:
        """The adapter of a project where Google answers so."""
        return self._made(service_account_key(KEY_ID), Carrier(say))

    def _made(self, key: str, carrier: Carrier | None) -> GcpCompute:
        made = GcpCompute(key, base_url=self.url, carrier=carrier)
        self._stack.callback(made.close)
        return made

    @property
    def sent(self) -> list[Request]:
        assert self.carrier
        return self.carrier.sent

    def rent(self, label: str = LABEL, offer: Offer | None = None, **more: Any) -> str:
        return self.market.create(offer or self.offer, launch_of(label, **more))

    def running(self, label: str = LABEL, **more: Any) -> str:
        id = self.rent(label, **more)
        self.after(OPERATION_S)
        assert self.status(id) == "running"
        return id

    def reserved(self) -> str:
        """The IP of our one address."""
        self.market.reserve(ADDRESS, REGION)
        self.after(OPERATION_S)
        ip = self.market.reserve(ADDRESS, REGION).ip
        assert ip
        return ip

    def status(self, id: str) -> str | None:
        one = self.market.get(id)
        rows = {row.provider_id: row for row in self.market.list()}
        assert rows.get(id) == one
        return one.status if one else None

    def newest(self, id: str) -> Operation:
        return self.market.operations(id)[0]

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)

    def close(self) -> None:
        self._stack.close()


def offers() -> tuple[Offer, ...]:
    place = place_of("Iowa, US")
    assert place
    return standby_offers(place, 30)


def launch_of(label: str = LABEL, **more: Any) -> Launch:
    wanted: dict[str, Any] = {"image": "", "disk_gb": 30, "env": {"A": "it's b"}, "start_script": "echo up\n", **more}
    return Launch(label=label, **wanted)


@pytest.fixture(params=["near", "over http"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(over_http=request.param == "over http")
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()
