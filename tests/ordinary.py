"""What each function is asked for all day: one request that it must answer with success."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric import rsa

from common import auth
from common.domain.host import Boot, Heartbeat, HostRecord
from common.topology import Function
from infra.deploy.local import scheduler_token


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Known:
    """Of a deployment with one machine that runs and serves."""

    jwt_secret: str
    api_key: str
    slack_signing_secret: str
    label: str
    """Of the machine."""
    url: str
    """Of the functions, as Cloud Scheduler knows it."""
    google_key: rsa.RSAPrivateKey
    """Signs Cloud Scheduler's tokens."""
    document: Callable[[str, str], dict[str, Any]]


def ordinary(row: Function, known: Known) -> Call:
    """Good for one use, now."""
    now, secret, label = datetime.now(UTC), known.jwt_secret, known.label
    if not row.public:
        return Call("POST", "/", bearer(scheduler_token(known.url, row, known.google_key, now)))
    if row.name == "slack":
        return command_in_slack(known, now)
    host = HostRecord.model_validate(known.document("hosts", label))
    said = host.model_dump(
        include={"label", "epoch", "seq", "phase", "disk", "samples", "attest", "progress", "vetoes"}
    )
    of_host = bearer(auth.host_token(label, host.epoch, secret=secret, now=now))
    calls = {
        "api": lambda: Call("GET", "/api/v1/instances", bearer(known.api_key)),
        "metrics": lambda: Call("GET", "/metrics", bearer(known.api_key)),
        "heartbeat": lambda: Call(
            "POST", "/", of_host, Heartbeat(**said, beat=host.beat + 1, sent_at=now).model_dump_json().encode()
        ),
        "provision": lambda: Call(
            "POST",
            "/",
            bearer(auth.bootstrap_token(label, secret=secret, now=now)),
            Boot(label=label, boot_id=known.document("boots", label)["boot_id"]).model_dump_json().encode(),
        ),
        "failover": lambda: Call("POST", "/", of_host, json.dumps({"label": label, "reason": "bench"}).encode()),
    }
    return calls[row.name]()


def command_in_slack(known: Known, now: datetime) -> Call:
    """`/gpu list` of a person who is not linked: signature, seen-set, one read of the link."""
    form = {"command": "/gpu", "text": "list", "team_id": "T1", "user_id": "U1", "channel_id": "C1"}
    body = urlencode(form | {"trigger_id": uuid.uuid4().hex, "response_url": "https://hooks.slack.com/x"})
    stamp, secret = str(int(now.timestamp())), known.slack_signing_secret.encode()
    signed = hmac.new(secret, f"v0:{stamp}:{body}".encode(), hashlib.sha256).hexdigest()
    headers = {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={signed}"}
    return Call("POST", "/", headers | {"Content-Type": "application/x-www-form-urlencoded"}, body.encode())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
