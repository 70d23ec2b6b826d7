"""What must reach somebody: written in the commit of what it tells, delivered at least once, deduplicated by its id."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from common.domain.model import Model

FIRST_RETRY_S = 10.0
RETRY_MAX_S = 3600.0
"""The pause doubles from FIRST_RETRY_S up to here."""
ATTEMPTS_MAX = 14
"""Then it is a dead letter: after about six hours."""
CLAIM_S = 60.0
"""Who attempts a message keeps others from it for so long. It only spares doubles: at least once is the promise."""
ERROR_KEPT = 300
URL_LENGTH_MAX = 2048
HTTPS_PORT = 443
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last 32 bits are an IPv4 address (RFC 6052)."""


class Kind(StrEnum):
    """What users are told."""

    RUNNING = "instance.running"
    HIBERNATED = "instance.hibernated"
    LOST = "instance.lost"
    ON_STANDBY = "instance.on_standby"
    HANDING_BACK = "instance.handing_back"
    BACK = "instance.back"
    UNPROTECTED = "instance.unprotected"
    FAILED = "instance.failed"
    RESTORED_OLDER = "instance.restored_older"
    CONFLICT = "instance.conflict"
    COPY = "instance.copy"
    SNAPSHOT_DAMAGED = "instance.snapshot_damaged"
    BUDGET_WARNING = "budget.warning"
    BUDGET_EXCEEDED = "budget.exceeded"
    CREDIT_LOW = "credit.low"
    IDLE_WARNING = "instance.idle"


SLACK_ERRAND: Literal["slack.errand"] = "slack.errand"
"""Not told but asked: what somebody in Slack wants done, and the answer to it."""


class MessageState(StrEnum):
    WAITING = "waiting"
    DONE = "done"
    DEAD = "dead"


class Webhook(Model):
    """The document `webhooks/<account>.<id>`. Its secret is derived from the deployment's key, and not kept."""

    schema_version: int = 1
    id: str
    account: str
    url: str
    kinds: tuple[Kind, ...] = ()
    """Empty = all."""
    created_at: datetime

    def wants(self, kind: Kind) -> bool:
        return not self.kinds or kind in self.kinds


class Message(Model):
    """The document `outbox/<id>`: one message to one target."""

    schema_version: int = 1
    id: str
    account: str
    kind: Kind | Literal["slack.errand"]
    target: str
    """`webhook:<id>` or `slack:<workspace>.<user>`."""
    body: dict[str, Any]
    state: MessageState = MessageState.WAITING
    attempts: int = 0
    next_at: datetime | None
    """Indexed; None = no attempt is due ever again."""
    created_at: datetime
    ended_at: datetime | None = None
    error: str = ""
    """Of the last attempt."""

    def payload(self) -> bytes:
        """The same bytes at every attempt."""
        content = {"id": self.id, "kind": self.kind, "at": self.created_at.isoformat(), **self.body}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    def claimed(self, at: datetime) -> Self:
        return self.model_copy(update={"next_at": at + timedelta(seconds=CLAIM_S)})

    def going_on(self, body: dict[str, Any], at: datetime, *, next_in_s: float) -> Self:
        """An attempt that went well and is not the last: what it tells is still under way."""
        later = at + timedelta(seconds=next_in_s)
        return self.model_copy(update={"body": body, "next_at": later, "attempts": 0, "error": ""})

    def delivered(self, at: datetime) -> Self:
        return self._ended(MessageState.DONE, at, error="")

    def failed(self, error: str, at: datetime, *, retry_after_s: float = 0.0) -> Self:
        """Tried again later, or, after ATTEMPTS_MAX, a dead letter. `retry_after_s` = what the target asked for."""
        tried = self.attempts + 1
        if tried >= ATTEMPTS_MAX:
            return self._ended(MessageState.DEAD, at, error=error)
        pause_s = retry_after_s or min(FIRST_RETRY_S * 2 ** (tried - 1), RETRY_MAX_S)
        update = {"attempts": tried, "next_at": at + timedelta(seconds=pause_s), "error": error[:ERROR_KEPT]}
        return self.model_copy(update=update)

    def dead(self, error: str, at: datetime) -> Self:
        return self._ended(MessageState.DEAD, at, error=error)

    def again(self, at: datetime) -> Self:
        """A dead letter gets another life, because somebody asked for it."""
        return self.model_copy(
            update={"state": MessageState.WAITING, "attempts": 0, "next_at": at, "ended_at": None}
        )  # fmt: skip

    def unsaid(self, at: datetime) -> Self:
        """Of an errand: what it said last may have been overwritten, so it is said again."""
        body = {**self.body, "shown": ""}
        if self.state is MessageState.WAITING:
            return self.model_copy(update={"body": body})
        return self.again(at).model_copy(update={"body": body})

    def _ended(self, state: MessageState, at: datetime, *, error: str) -> Self:
        ended = {"state": state, "attempts": self.attempts + 1, "next_at": None, "ended_at": at}
        return self.model_copy(update=ended | {"error": error[:ERROR_KEPT]})


def signature(payload: bytes, *, secret: str, at: datetime) -> str:
    """`t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<payload>">`: the receiver refuses what is older than minutes."""
    stamp = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def refusal_of_url(url: str, *, loopback_allowed: bool) -> str | None:
    """Why a URL may not be a webhook's, or None. What its name resolves to is judged at each delivery."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "it is not a URL"
    if len(url) > URL_LENGTH_MAX or not host or any(ord(letter) <= 32 for letter in url):
        return "it is not a URL"
    if parts.username or parts.password or parts.fragment:
        return "it may hold no user, password or fragment"
    if loopback_allowed and is_loopback_name(host) and parts.scheme in ("http", "https"):
        return None
    if parts.scheme != "https" or port not in (None, HTTPS_PORT):
        return "it must be https, on the usual port"
    if "." not in host and ":" not in host:
        return "its host must be a full name"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if is_public(address) else f"{address} is not a public address"


def is_loopback_name(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Global, for IPv4 addresses inside IPv6 ones too; never multicast."""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    teredo = getattr(address, "teredo", None)
    embedded = [inner] if inner else [*teredo] if teredo else []
    if address in NAT64:
        embedded.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return all(a.is_global and not a.is_multicast and not a.is_reserved for a in (address, *embedded))
