"""What people are told: one webhook per account, whose receiver is away, answers in vain, or hears things twice.

M every message is written in the commit of what it tells, is told in the same words at every attempt, is done only
when its receiver has it, and is never dropped. What is told twice bears the same id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from common.domain.outbox import ATTEMPTS_MAX, SLACK_ERRAND, signature
from common.errors import DeliveryFailed
from common.ports import Data
from common.workflows import outbox
from tests.simulation.ports import Gate

if TYPE_CHECKING:
    from tests.simulation.world import World

URL = "https://people.example.com/dumont"
TOLD = frozenset({"running", "idle", "lost", "restored_older", "copied"})
"""Lines of an instance's story that are never written without their message."""
UNLINKED = "this person in Slack was unlinked"
SAME = ("id", "account", "kind", "target", "body", "created_at")
OVERDUE_S = 300.0


class Mail:
    """`ports.Courier`, and the memory of whoever receives."""

    def __init__(self, world: World, gate: Gate) -> None:
        self._world, self._gate = world, gate
        self.heard: dict[str, bytes] = {}
        self.times_heard = 0

    def subscribe(self) -> None:
        """Before anything happens."""
        world = self._world
        for account in sorted({owned.account for owned in world.plan.owned}):
            outbox.add_webhook(world.app, account=account, url=URL, kinds=(), now=world.loop.clock())

    def post(self, url: str, payload: bytes, headers: Mapping[str, str]) -> None:
        about = str(json.loads(payload).get("instance_id", ""))
        self._gate.call(
            "mail",
            "post",
            lambda: self._hear(url, payload, headers),
            about=about,
            mutates=True,
            unknown=DeliveryFailed,
        )

    def _hear(self, url: str, payload: bytes, headers: Mapping[str, str]) -> None:
        id, world = headers["Dumont-Id"], self._world
        doc = world.store.docs.get("outbox", {}).get(id)
        self.times_heard += 1
        if doc is None or json.loads(payload)["id"] != id or url != URL:
            world.oracle.violate("M", f"somebody was told {id}, which nobody wrote")
        elif self.heard.setdefault(id, payload) != payload:
            world.oracle.violate("M", f"{id} was told in two ways")
        elif not self._is_signed(doc.data, payload, headers["Dumont-Signature"]):
            world.oracle.violate("M", f"{id} is not signed")

    def _is_signed(self, message: Data, payload: bytes, signed: str) -> bool:
        world = self._world
        key = f"{message['account']}.{message['target'].partition(':')[2]}"
        secret = "whsec_" + world.deployment.derive("webhook", key).hex()
        stamp = int(signed.partition(",")[0].removeprefix("t="))
        return signed == signature(payload, secret=secret, at=datetime.fromtimestamp(stamp, UTC))

    # --- what must hold

    def see(self, changes: list[tuple[str, str, Data | None, Data | None]], lines: set[str]) -> None:
        """Of one commit; `lines` = the kinds of the story's lines in it."""
        written = False
        for collection, id, before, after in changes:
            if collection == "outbox":
                written = written or before is None
                self._message(id, before, after)
        if lines & TOLD and not written:
            self._world.oracle.violate("M", f"{lines & TOLD} is written down and nobody will be told")

    def _message(self, id: str, before: Data | None, after: Data | None) -> None:
        violate = self._world.oracle.violate
        if after is None:
            violate("M", f"message {id} was deleted")
        elif before and any(before[name] != after[name] for name in _same(after)):
            violate("M", f"message {id} became another one")
        elif after["state"] == "done" and id not in self.heard and after["target"].startswith("webhook:"):
            violate("M", f"message {id} ({after['kind']}) is done, and nobody has heard it")
        elif after["state"] == "dead" and after["attempts"] < ATTEMPTS_MAX - 1 and after["error"] != UNLINKED:
            violate("M", f"message {id} is dead after {after['attempts']} attempts: {after['error']}")
        elif after["state"] == "waiting" and after["next_at"] is None:
            violate("M", f"message {id} waits for ever")

    def overdue(self) -> list[str]:
        """At rest nobody waits for an attempt that was due."""
        since = self._world.loop.clock() - self._world.delta(OVERDUE_S)
        docs: dict[str, Any] = self._world.store.docs.get("outbox", {})
        late = [id for id, doc in docs.items() if doc.data["next_at"] and doc.data["next_at"] < since]
        return [f"messages {late[:3]} are due and nobody takes them"] if late else []


def _same(message: Data) -> tuple[str, ...]:
    """What is asked for in Slack goes on: where its answer stands, and what it began, is noted in its body."""
    return SAME if message["kind"] != SLACK_ERRAND else tuple(name for name in SAME if name != "body")
