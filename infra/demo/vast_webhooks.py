"""Vast.ai's webhooks as a state machine: registered by a call, signed, delivered at least once, retried by status.

Source: the vendor's documentation of its notification webhooks. Loopback addresses are accepted here, where the vendor
demands a public https address.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

WEBHOOKS_MAX = 4
"""Per user."""
EVENT_TYPES = (
    "client:outbid",
    "client:instance_created",
    "client:instance_started",
    "client:instance_stopped",
    "client:instance_offline",
    "client:instance_online",
    "client:upcoming_downtime",
    "client:low_credit",
)
RETRY_AFTER_S = (5.0, 30.0, 120.0, 600.0)
RETRIED = frozenset({408, 429}) | frozenset(range(500, 600))


class WebhookRefused(Exception):
    """(status, slug, text) of the vendor's refusal."""

    def __init__(self, status: int, slug: str, text: str) -> None:
        super().__init__(text)
        self.status, self.slug = status, slug


@dataclass
class Webhook:
    id: int
    name: str
    url: str
    event_types: list[str]
    secret: str

    def shown(self, *, with_secret: bool = False) -> dict[str, Any]:
        shown = {"id": self.id, "name": self.name, "webhook_url": self.url, "event_types": self.event_types}
        return {**shown, **({"webhook_secret": self.secret} if with_secret else {})}


@dataclass
class Delivery:
    """One event on its way to one webhook."""

    event_id: str
    webhook: int
    body: bytes
    due_at: datetime
    attempt: int = 1


@dataclass
class Webhooks:
    rng: random.Random
    twice: bool = False
    """Every event is delivered twice: at least once is what is promised."""
    rows: dict[int, Webhook] = field(default_factory=dict)
    _waiting: list[Delivery] = field(default_factory=list)
    _next_id: int = 300

    def handle(self, method: str, words: Sequence[str], body: Mapping[str, Any], now: datetime) -> Any:
        """The calls below v0/webhooks/; raises `WebhookRefused`."""
        match method, *words:
            case ["GET"]:
                return {"success": True, "webhooks": [row.shown() for row in self.rows.values()]}
            case ["POST"]:
                return {"success": True, "webhook": self._create(body).shown(with_secret=True)}
            case ["DELETE", id]:
                if self.rows.pop(int(id), None) is None:
                    raise WebhookRefused(404, "not_found", f"no webhook {id}")
                return {"success": True}
            case ["POST", id, "test"]:
                self._queue(self._row(id), "webhook_test", "This is a test.", now)
                return {"success": True}
        raise WebhookRefused(404, "not_found", "no such call")

    def _create(self, body: Mapping[str, Any]) -> Webhook:
        unknown = [kind for kind in body.get("event_types") or ["-"] if kind not in EVENT_TYPES]
        if unknown or not str(body.get("webhook_url", "")).startswith(("https://", "http://127.0.0.1")):
            raise WebhookRefused(400, "invalid_args", "webhook_url and event_types must be valid")
        if len(self.rows) >= WEBHOOKS_MAX:
            raise WebhookRefused(400, "limit_reached", f"at most {WEBHOOKS_MAX} webhooks")
        self._next_id += 1
        made = Webhook(
            id=self._next_id,
            name=str(body.get("name") or "")[:120],
            url=str(body["webhook_url"])[:2048],
            event_types=list(body["event_types"]),
            secret=self.rng.randbytes(24).hex(),
        )
        self.rows[made.id] = made
        return made

    def _row(self, id: str) -> Webhook:
        if int(id) not in self.rows:
            raise WebhookRefused(404, "not_found", f"no webhook {id}")
        return self.rows[int(id)]

    # --- events

    def emit(self, kind: str, text: str, now: datetime) -> None:
        """`kind` is one of EVENT_TYPES. No instance id: the vendor's payload has none but in its text."""
        for row in self.rows.values():
            if kind in row.event_types:
                self._queue(row, kind.removeprefix("client:"), text, now)

    def _queue(self, row: Webhook, slug: str, text: str, now: datetime) -> None:
        event_id = self.rng.randbytes(12).hex()
        body = {
            "event_id": event_id,
            "user_id": 1,
            "notif_type": slug,
            "subject": slug.replace("_", " "),
            "message": text,
            "timestamp": now.timestamp(),
        }
        plain = json.dumps(body).encode()
        self._waiting += [Delivery(event_id, row.id, plain, now) for _ in range(2 if self.twice else 1)]

    def take_due(self, now: datetime) -> list[Delivery]:
        due = [delivery for delivery in self._waiting if delivery.due_at <= now]
        self._waiting = [delivery for delivery in self._waiting if delivery.due_at > now]
        return [delivery for delivery in due if delivery.webhook in self.rows]

    def signed(self, delivery: Delivery, now: datetime) -> tuple[str, dict[str, str]]:
        """(URL, headers) of one attempt."""
        row, stamp = self.rows[delivery.webhook], str(int(now.timestamp()))
        digest = hmac.new(row.secret.encode(), f"{stamp}.".encode() + delivery.body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "X-Vast-Event-Id": delivery.event_id,
            "X-Vast-Delivery-Attempt": str(delivery.attempt),
            "X-Vast-Timestamp": stamp,
            "X-Vast-Signature-256": f"sha256={digest}",
        }
        return row.url, headers

    def answered(self, delivery: Delivery, status: int | None, now: datetime) -> None:
        """`status` None = no answer in time. 2xx, 3xx and most of 4xx are final."""
        is_final = status is not None and status not in RETRIED
        if is_final or delivery.attempt > len(RETRY_AFTER_S):
            return
        later = now + timedelta(seconds=RETRY_AFTER_S[delivery.attempt - 1])
        self._waiting.append(
            Delivery(delivery.event_id, delivery.webhook, delivery.body, later, attempt=delivery.attempt + 1)
        )

    def to_json(self) -> dict[str, Any]:
        """Deliveries under way are lost with the vendor's process, as they may be."""
        return {"rows": [asdict(row) for row in self.rows.values()], "next_id": self._next_id}

    def restore(self, plain: Mapping[str, Any]) -> None:
        self.rows = {row["id"]: Webhook(**row) for row in plain["rows"]}
        self._next_id = plain["next_id"]
