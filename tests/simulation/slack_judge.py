"""What must hold of Slack: who acts, how often, on which word, and that what people read there is true.

S1 a plan that is approved rents once, whatever is delivered, copied or pressed again. S2 nothing is rented and nothing
ended without the button that says so, no offer that has expired, nothing long after it was asked for. S3 nobody acts
who is not linked. S4 a forged, old or repeated request is refused. S5 nobody reads of another account's instance. S6
what is done was shown, and an instance's state is told as it is; what is told last stays true. S7 Slack refuses no
message of ours. Tenancy of what is written, and that no message is lost, are judged where they are for everybody
(modules `invariants`, `mail`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from common.auth import SLACK_AGE_MAX_S
from common.domain.outbox import SLACK_ERRAND
from common.ports import Data
from common.web.slack_outbox import BEGUN_WITHIN
from infra.demo.slack import SlackSim
from tests.simulation.clock import Killed, Task
from tests.simulation.knobs import LONGEST_LATE_S, LONGEST_PAUSE_S

if TYPE_CHECKING:
    from tests.simulation.world import World

Change = tuple[str, str, Data | None, Data | None]
TOLD = re.compile(r"`([a-z0-9]{12})`[^*`]*?(?:\*|[▓░]  )(\w+(?: \w+)?)")
"""An instance's id and the state that it is said to be in: a headline, or a progress bar."""
PHASES_OF = {
    "requested": {"down", "boot"},
    "provisioning": {"boot"},
    "restoring": {"up"},
    "running": {"up"},
    "freezing": {"freezing"},
    "hibernating": {"freezing", "down"},
    "hibernated": {"down"},
    "terminated": {"ended"},
    "failed": {"down"},
}
"""State -> phases of the record in which it may be shown."""
WISHED = {"down": "down", "gone": "ended"}
"""Want -> the phase that it leads to; `up` is where an instance stays."""
APPROVED = {"deploy": "provision", "destroy": "terminate"}
"""A button's verb -> the operation that nothing else may begin."""
TROUBLE = ":warning:"
"""In what we say when we could not take a request."""


@dataclass
class Said:
    """One message of ours on its way to somebody."""

    id: str
    """Of the outbox's message."""
    user: str
    about: str
    blocks: list[Any]
    since: float
    """When the attempt that says it began: it looked after that."""


@dataclass
class Pressed:
    """One press of a button, as Slack knows it."""

    verb: str
    origin: str
    """The outbox's id of the errand that showed the button; of all its copies."""
    at: datetime
    until: datetime | None


class Judge:
    def __init__(self, world: World, sim: SlackSim) -> None:
        self._world, self._sim = world, sim
        self.people: dict[str, str] = {}
        """User in Slack -> the account that the user belongs to."""
        self.rented: defaultdict[str, list[str]] = defaultdict(list)
        """Account -> keys of the instances that were approved in Slack."""
        self._typed: defaultdict[str, str] = defaultdict(str)
        self._pressed: dict[str, Pressed] = {}
        self._origin: dict[str, str] = {}
        """ts of a message -> the outbox's message that it was shown for."""
        self._taken: Counter[str] = Counter()
        self._errand_of: dict[str, str] = {}
        """Document of an Idempotency-Key -> errand."""
        self._url_of: dict[str, str] = {}
        """Errand -> the response_url of what asked for it."""
        self._unlinked_at: dict[str, float] = {}
        """Person -> when; absent = is linked, or never was."""
        self._linked: set[str] = set()
        self._approved: Counter[tuple[str, str]] = Counter()
        """By account, and by the plan's errand."""
        self._said: dict[str, Said] = {}
        """By whoever tried, shown or not."""
        self._last: dict[str, Said] = {}
        """By whom the message is done."""
        self._shown: dict[str, Said] = {}
        self._shower: dict[str, Task | None] = {}
        """Whose words those are."""
        self._overtaken: set[str] = set()
        """Messages of which something arrived after its sender had given up: nobody can order those."""
        self._story: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        """Instance -> (from, phase)."""
        self._wished_at: dict[str, float] = {}
        self._done: dict[str, tuple[str, float]] = {}
        """Errand -> the instance that its operation is about, and when it was done."""

    def account_of(self, user: str) -> str | None:
        return self.people.get(user)

    def _violate(self, code: str, what: str) -> None:
        self._world.oracle.violate(code, what)

    # --- what people do

    def typed(self, user: str, text: str) -> None:
        self._typed[user] += f" {text}"

    def pressed(self, user: str, url: str, ts: str, value: str) -> None:
        press = json.loads(value)
        until = datetime.fromisoformat(press["until"]) if press.get("until") else None
        origin = self._origin.get(ts, ts)
        self._pressed[url] = Pressed(press["ask"]["verb"], origin, self._world.loop.clock(), until)
        self._typed[user] += f" {press['ask'].get('instance', '')}"

    # --- what the function answers

    def answered(
        self, user: str, headers: Mapping[str, str], arrived_at: datetime, answer: tuple[int, bytes], *, is_forged: bool
    ) -> None:
        status, words = answer[0], answer[1].decode()
        signature, signed_at = headers["X-Slack-Signature"], int(headers["X-Slack-Request-Timestamp"])
        if is_forged:
            if status < 400:
                self._violate("S4", f"a forged request was answered {status} {words[:100]}")
            return
        age_s = arrived_at.timestamp() - signed_at
        if status < 400 and age_s > SLACK_AGE_MAX_S:
            self._violate("S4", f"a request that was signed {age_s:.0f} s before was answered {status} {words[:100]}")
        if status < 400 and TROUBLE not in words:
            self._taken[signature] += 1
            if self._taken[signature] > 1:
                self._violate("S4", f"the same request was taken twice: {words[:100]}")
        self._no_others_instance(user, words)

    def _no_others_instance(self, user: str, words: str) -> None:
        """S5; what somebody typed may be said back to them."""
        account = self.people.get(user)
        for key in self._world.store.docs.get("instances", {}):
            owner, _, id = key.partition(".")
            if owner != account and id in words and id not in self._typed[user]:
                self._violate("S5", f"{user} of {account} was shown {key}: {words[:200]}")

    # --- what is written

    def see(self, changes: list[Change]) -> None:
        """Of one commit."""
        for collection, id, before, after in changes:
            if collection == "outbox" and after and after["target"].startswith("slack:"):
                self._message(id, before, after)
            elif collection == "slack_links":
                self._link(id, after)
            elif collection == "instances" and after:
                if not before or before["phase"] != after["phase"]:
                    self._story[id].append((self._world.loop.now, after["phase"]))
                if not before or before["want"] != after["want"]:
                    self._wished_at[id] = self._world.loop.now
        for collection, _, before, after in changes:
            if collection == "operations" and before is None and after:
                self._begun(after, changes)

    def _link(self, person: str, after: Data | None) -> None:
        if after is None:
            self._unlinked_at[person] = self._world.loop.now
            self._linked.discard(person)
        else:
            self._linked.add(person)

    def _message(self, id: str, before: Data | None, after: Data) -> None:
        task = getcurrent()
        if before is None:
            self._asked(id, after)
        elif isinstance(task, Task) and after["state"] == "waiting":
            task.facts["attempts"], task.facts["since"] = id, self._world.loop.now
        if before and before["state"] == "waiting" and after["state"] == "done":
            self._finished(id, after)
        if before and before["state"] == "waiting" and after["state"] == "dead" and not after["error"]:
            self._violate("S6", f"{id} is dead without a reason")

    def _asked(self, id: str, errand: Data) -> None:
        if errand["kind"] != SLACK_ERRAND:
            return
        key = hashlib.sha256(f"slack-{errand['body']['op']}".encode()).hexdigest()
        self._errand_of[f"{errand['account']}.{key}"] = id
        self._url_of[id] = errand["body"]["reply"]["response_url"]
        self._is_linked(errand, "asked for", since=self._since())

    def _since(self) -> float:
        """When whoever writes now began to read: a write that comes late has nobody behind it."""
        task = getcurrent()
        return float(task.facts["since"] if isinstance(task, Task) else self._world.loop.now - LONGEST_LATE_S)

    def _is_linked(self, errand: Data, what: str, *, since: float) -> None:
        """S3: at some time since then."""
        person = errand["target"].removeprefix("slack:")
        was = person in self._linked or self._unlinked_at.get(person, -1.0) >= since
        if not was or self.people.get(errand["body"]["person"]["user"]) != errand["account"]:
            self._violate("S3", f"{person}, who is not linked to {errand['account']}, {what} {errand['body']['ask']}")

    def _begun(self, operation: Data, changes: list[Change]) -> None:
        """An operation, and who asked for it."""
        task = getcurrent()
        named = (self._errand_of[id] for c, id, _, _ in changes if c == "idempotency" and id in self._errand_of)
        here = task.facts.get("attempts") if isinstance(task, Task) else None
        errand_id = next(named, here)
        doc = self._world.store.docs.get("outbox", {}).get(errand_id or "")
        if doc is None or doc.data["kind"] != SLACK_ERRAND:
            return
        key = operation["instance_key"]
        self._is_linked(doc.data, "began", since=self._since())
        if operation["account"] != doc.data["account"]:
            self._violate("S3", f"an errand of {doc.data['account']} began {operation['kind']} of {key}")
        age = self._world.loop.clock() - doc.data["created_at"]
        if here and age > BEGUN_WITHIN + timedelta(seconds=LONGEST_PAUSE_S):
            self._violate("S2", f"{operation['kind']} of {key} began {age} after it was asked for")
        press = self._pressed.get(self._url_of[doc.id])
        for verb, kind in APPROVED.items():
            if operation["kind"] == kind:
                self._is_approved(operation, verb, press, errand_id or "")

    def _is_approved(self, operation: Data, verb: str, press: Pressed | None, errand_id: str) -> None:
        key = operation["instance_key"]
        if press is None or press.verb != verb:
            self._violate("S2", f"{operation['kind']} of {key} began without its button, by {errand_id}")
        elif verb == "deploy":
            if press.until and press.at > press.until:
                self._violate("S2", f"{key} was approved at {press.at}, and the offer held until {press.until}")
            self._approved[operation["account"], press.origin] += 1
            if self._approved[operation["account"], press.origin] > 1:
                self._violate("S1", f"{key} was rented by a plan that had been approved before")
            self.rented[operation["account"]].append(key)
            self._world.users.adopt(key)

    # --- what people read

    def saying(self, user: str, message: Mapping[str, Any]) -> Said:
        """Called as the product makes the call."""
        task = getcurrent()
        id = str(task.facts.get("attempts", "")) if isinstance(task, Task) else ""
        doc = self._world.store.docs.get("outbox", {}).get(id)
        body = doc.data["body"] if doc else {}
        about = str(body.get("instance_id") or body.get("ask", {}).get("instance") or "")
        said = self._said[id] = Said(id, user, about, message["blocks"], self._since())
        if isinstance(task, Task):
            task.facts["said"] = said
        words = json.dumps([message["text"], message["blocks"]], ensure_ascii=False)
        self._no_others_instance(user, words)
        for instance, state in TOLD.findall(words):
            self._is_true(instance, state, self._since())
        return said

    def _is_true(self, id: str, state: str, since: float) -> None:
        """S6: it stood so at some time since this attempt began."""
        key = next((key for key in self._story if key.endswith(f".{id}")), None)
        phases = PHASES_OF.get(state)
        if key is None or phases is None:
            return
        story = self._story[key]
        seen = {phase for n, (_, phase) in enumerate(story) if n + 1 == len(story) or story[n + 1][0] >= since}
        if not seen & phases:
            self._violate("S6", f"{key} is told to be {state}, and was {seen} since {since:.0f} s")

    def showing(self, said: Said, ts: str, *, is_late: bool) -> None:
        """Called when Slack has it."""
        task = getcurrent()
        self._shown[said.id], self._shower[said.id] = said, task if isinstance(task, Task) else None
        self._origin[ts] = said.id
        if is_late:
            self._overtaken.add(said.id)

    def _finished(self, id: str, after: Data) -> None:
        task, shown = getcurrent(), self._shown.get(id)
        mine = task.facts.get("said") if isinstance(task, Task) else None
        said = mine if mine and mine.id == id else self._said.get(id)
        is_other = id not in self._overtaken and said is not None and shown is not None and said.blocks != shown.blocks
        if said is None or shown is None or is_other:
            self._violate("S6", f"{id} ({after['kind']}) is done, and its last words were not shown")
        if said:
            self._last[id] = said
        operation = after["body"].get("operation_id")
        if operation and said:
            doc = self._world.store.docs["operations"][f"{after['account']}.{operation}"]
            self._done[id] = doc.data["instance_key"], said.since

    # --- at rest

    def unrest(self) -> list[str]:
        """What was done, and overtaken by older words, is said once more; whoever overtook it may still stand still."""
        docs = self._world.store.docs.get("outbox", {})
        again = [id for id in self._done if docs[id].data["next_at"] is not None or self._overtaker(id, is_over=False)]
        return [f"{again[:3]} are to be said again"] if again else []

    def _overtaker(self, id: str, *, is_over: bool) -> Task | None:
        """Who showed other words after the last ones of a message that is done."""
        shower = self._shower[id]
        overtakes = shower is not None and self._shown[id].blocks != self._last[id].blocks
        return shower if overtakes and shower and shower.is_over is is_over else None

    def judge_the_end(self) -> None:
        if self._sim.refusals:
            self._violate("S7", f"Slack refused: {self._sim.refusals[:3]}")
        for id, (key, looked_at) in self._done.items():
            shown, said = self._shown[id], self._last[id]
            if id in self._overtaken:
                continue
            overtaker = self._overtaker(id, is_over=True)
            if overtaker and isinstance(overtaker.error, Killed):
                continue  # before it could ask for the last words to be said again
            if shown.blocks != said.blocks:
                self._violate("S6", f"what {id} said last was overtaken by older words")
            record = self._world.record(key)
            if record is None or record["phase"] == WISHED.get(record["want"]):
                continue  # a wish that was not carried out yet when the words were said
            if self._wished_at.get(key, 0.0) <= looked_at:
                self._still_holds(key, record["phase"], json.dumps(shown.blocks, ensure_ascii=False))

    def _still_holds(self, key: str, phase: str, words: str) -> None:
        for id, state in TOLD.findall(words):
            phases = PHASES_OF.get(state)
            if key.endswith(f".{id}") and phases and phase not in phases:
                self._violate("S6", f"{key} was last told to be {state}, nobody wished otherwise, and it is {phase}")
