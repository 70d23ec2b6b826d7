"""The people: they ask for instances, work, fall idle, change their mind, and insist until they are heard."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.domain.account import Caller, Role
from common.domain.strategy import Strategy
from common.errors import BudgetExceeded, DumontError, IllegalMove, NotFound
from common.web import instances as rest
from common.web import snapshots as rest_snapshots
from common.web import standby as rest_standby
from common.web.routes import Call, Nothing
from tests.simulation.clock import Task
from tests.simulation.market import GPU

if TYPE_CHECKING:
    from tests.simulation.world import World

PATIENCE_S = 60.0
"""Until a user takes a request for lost and sends it again."""
AGAIN_S = (5.0, 30.0)
THINKS_S = (200.0, 1800.0)
PAIR_THINKS_S = (60.0, 900.0)
"""Of those who have a standby."""
STAYS = 0.75
WANTS_OLDER, THE_OLDEST = 0.25, 0.7
"""How often, whenever a user thinks, files of an older snapshot are missed; and how often those of the oldest."""
OLDER_PATHS = ((), ("now",), ("now", "never there"))
BUSY_S, IDLE_S = (300.0, 2400.0), (60.0, 900.0)
LOOKS_EVERY_S = 60.0
INSISTS_AFTER_S = 120.0
TAKEN_WITHIN_S = 200.0
"""Whoever approved it has seen it by then."""
VERBS: dict[str, Callable[[Call], Any]] = {
    "hibernate": rest.hibernate_instance,
    "wake": rest.wake_instance,
    "terminate": rest.terminate_instance,
    "restore": rest.restore_instance,
    "purge": rest.purge_instance,
}
OF_STANDBYS: dict[str, tuple[Callable[[Call], Any], dict[str, Any]]] = {
    "failover": (rest_standby.fail_over, {}),
    "hand_back": (rest_standby.hand_back, {}),
    "with_standby": (rest_standby.change, {"standby": True}),
    "without_standby": (rest_standby.change, {"standby": False}),
}
"""Verb -> its handler, and what its body says besides the instance."""
WISH = {
    "provision": "up",
    "wake": "up",
    "restore": "up",
    "hibernate": "down",
    "terminate": "gone",
    "discard": "gone",
    "purge": "gone",
}
NEXT = {
    "up": ("hibernate", "hibernate", "hibernate", "wake", "terminate", "discard"),
    "down": ("wake", "wake", "wake", "hibernate", "terminate"),
    "gone": ("restore", "restore", "restore", "terminate", "purge"),
}


@dataclass
class Owned:
    """One instance as its user knows it."""

    account: str
    strategy: Strategy
    snapshot_every_s: float | None = None
    idle_for_s: float | None = None
    deploys_in_slack: bool = False
    key: str = ""
    wish: str = "up"
    is_discarding: bool = False
    busy: list[tuple[float, bool]] = field(default_factory=list)
    """(from, is the GPU busy?)"""
    always: str = ""
    """The verb that a directed run's user chooses whenever it chooses one."""
    thinks_s: tuple[float, float] | None = None
    """Of a directed run's user, who has more to do than others."""
    final: str = ""
    """What the user wants in the end; asked for again and again once the faults stop."""

    def spec(self) -> dict[str, float | None]:
        return {"snapshot_every_s": self.snapshot_every_s, "idle_for_s": self.idle_for_s}


class Users:
    def __init__(self, world: World, rng: random.Random, owned: list[Owned]) -> None:
        self._world, self._rng, self.owned = world, rng, owned
        self._requests = 0
        self._misses = random.Random(f"copies:{world.seed}")

    def of(self, key: str | None) -> Owned | None:
        return next((owned for owned in self.owned if owned.key == key), None) if key else None

    def is_busy(self, key: str | None, now: float) -> bool:
        owned = self.of(key)
        if owned is None:
            return True
        while owned.busy and len(owned.busy) > 1 and owned.busy[1][0] <= now:
            owned.busy.pop(0)
        return owned.busy[0][1] if owned.busy else True

    def begin(self) -> None:
        for owned in self.owned:
            owned.busy = self._days(self._world.faults_end)
            delay = self._rng.uniform(0, 240)
            self._world.loop.spawn(functools.partial(self._live, owned), "user", delay=delay)
            if self._world.people:
                self._world.loop.spawn(functools.partial(self._world.people.chat, owned), "user", delay=delay)

    def _days(self, until: float) -> list[tuple[float, bool]]:
        at, busy, days = 0.0, True, []
        while at < until:
            days.append((at, busy))
            at += self._rng.uniform(*(BUSY_S if busy else IDLE_S))
            busy = not busy
        return [*days, (until, True)]

    # --- one user's life with one instance

    def _live(self, owned: Owned) -> None:
        world, loop = self._world, self._world.loop
        if world.people:
            world.people.link(owned.account)
        owned.key = self.provision(owned)
        while loop.now < world.faults_end:
            thinks_s = self._rng.uniform(*(owned.thinks_s or (PAIR_THINKS_S if world.google else THINKS_S)))
            loop.sleep(min(thinks_s, max(0.0, world.faults_end - loop.now)))
            if loop.now >= world.faults_end:
                break
            if not (world.google and self._stays(owned)):
                self.ask(owned, self._next_verb(owned))
            if flip := world.struck("flip", owned.key):
                loop.sleep(5 + flip.length_s())
                self.ask(owned, {"up": "hibernate", "down": "wake", "gone": "restore"}[owned.wish])
            self._moves(owned)
            self._wants_older(owned)
            if world.strike("stranger_asks", owned.key):
                self._ask_as_stranger(owned)
        self.insist(owned)

    def _next_verb(self, owned: Owned) -> str:
        if owned.always:
            return "purge" if owned.wish == "gone" else owned.always
        return self._rng.choice(NEXT[owned.wish])

    def _stays(self, owned: Owned) -> bool:
        """Who has a standby lets it run, more often than not: a pair has a life of its own."""
        record = self._world.record(owned.key)
        is_free = record is not None and record["want"] == "up" and not owned.always
        return is_free and self._rng.random() < STAYS

    def _moves(self, owned: Owned) -> None:
        """There and back, and with a standby or without: asked for at any time."""
        world = self._world
        if world.strike("asks_failover", owned.key):
            self.ask_of_standby(owned, "failover")
        if world.strike("asks_hand_back", owned.key):
            self.ask_of_standby(owned, "hand_back")
        if world.strike("flips_standby", owned.key):
            record = world.record(owned.key)
            has_one = record is not None and record["spec"]["standby"]
            self.ask_of_standby(owned, "without_standby" if has_one else "with_standby")

    def ask_of_standby(self, owned: Owned, verb: str) -> None:
        """Once: who is not heard tries again when it comes to mind."""
        handle, more = OF_STANDBYS[verb]
        body = (rest_standby.Wish if more else rest_standby.Which)(instance_id=owned.key.partition(".")[2], **more)
        self._requests += 1
        self._world.loop.join(self._call(owned, handle, body, {}, f"request-{self._requests}"), PATIENCE_S)

    def _wants_older(self, owned: Owned) -> None:
        """A whim, asked for once. It is drawn apart: who has none lives as before, as all do in a directed run."""
        world, draw = self._world, self._misses
        docs = world.store.docs.get("snapshots", {}).values()
        kept = [d.data for d in docs if d.data["instance_key"] == owned.key and d.data["given_up_at"] is None]
        if draw.random() >= WANTS_OLDER or world.faults.directed or not kept:
            return
        kept.sort(key=lambda data: data["taken_at"])
        older = kept[0] if draw.random() < THE_OLDEST else draw.choice(kept)
        ids = {"id": owned.key.partition(".")[2], "snapshot": older["id"].rpartition(".")[2]}
        body = rest_snapshots.Files(paths=draw.choice(OLDER_PATHS))
        self._requests += 1
        task = self._call(owned, rest_snapshots.restore_files, body, ids, f"request-{self._requests}")
        if world.loop.join(task, PATIENCE_S) and task.error is None:
            world.copies.promised(owned.key, task.result.operation.id)

    def provision(self, owned: Owned) -> str:
        if self._world.people and owned.deploys_in_slack:
            return self._world.people.deploy(owned)
        body = rest.Provision(gpu=GPU, strategy=owned.strategy, disk_gb=32, max_usd_per_hour="2.00", **owned.spec())
        while True:
            try:
                answer = self._until_heard(owned, "provision", body, {})
                break
            except BudgetExceeded:
                self._world.loop.sleep(INSISTS_AFTER_S)
        return f"{owned.account}.{answer.operation.instance_id}"

    def ask(self, owned: Owned, verb: str) -> None:
        """Until it is accepted or refused for good."""
        if self._goes_by_slack(owned, verb):
            owned.wish = WISH[verb]
            return
        body = rest.Terminate(discard=verb == "discard") if verb in ("terminate", "discard") else Nothing()
        owned.is_discarding = owned.is_discarding or verb == "discard"
        try:
            self._until_heard(
                owned, "terminate" if verb == "discard" else verb, body, {"id": owned.key.partition(".")[2]}
            )
        except (IllegalMove, NotFound, BudgetExceeded):
            return
        owned.wish = WISH[verb]
        if verb in ("restore", "wake"):
            owned.is_discarding = False

    def _goes_by_slack(self, owned: Owned, verb: str) -> bool:
        people = self._world.people
        return people is not None and people.would_ask(owned, verb) and people.ask(owned, verb)

    def _until_heard(self, owned: Owned, verb: str, body: Any, ids: dict[str, str]) -> Any:
        self._requests += 1
        request = f"request-{self._requests}"
        handle = rest.provision_instance if verb == "provision" else VERBS[verb]
        world = self._world
        while True:
            task = self._call(owned, handle, body, ids, request)
            if world.strike("verb_twice", owned.key):
                self._call(owned, handle, body, ids, request + "-again" if verb != "provision" else request)
            heard = world.loop.join(task, PATIENCE_S)
            if heard and isinstance(task.error, (IllegalMove, NotFound, BudgetExceeded)):
                raise task.error
            if heard and task.error is None and not world.strike("verb_retried", owned.key):
                return task.result
            world.loop.sleep(self._rng.uniform(*AGAIN_S))

    def _call(self, owned: Owned, handle: Callable[[Call], Any], body: Any, ids: dict[str, str], request: str) -> Task:
        world = self._world
        caller = Caller(account=owned.account, user_id="someone", role=Role.MEMBER)

        def run() -> Any:
            call = Call(world.app, caller, world.loop.clock(), ids, body, None, request)
            return handle(call)

        return world.web.invoke(f"verb {handle.__name__}", run, account=owned.account, key=owned.key or None)

    def _ask_as_stranger(self, owned: Owned) -> None:
        """Another account's user must find nothing, whatever the verb."""
        stranger = Owned(f"{owned.account}x", owned.strategy)
        ids = {"id": owned.key.partition(".")[2]}
        for handle, body in ((rest.show_instance, Nothing()), (rest.terminate_instance, rest.Terminate(discard=True))):
            task = self._call(stranger, handle, body, ids, f"stranger-{self._requests}")
            if self._world.loop.join(task, PATIENCE_S) and task.error is None:
                self._world.oracle.violate("I9", f"a stranger was served {handle.__name__} of {owned.key}")

    # --- the end

    def adopt(self, key: str) -> None:
        """What was approved in Slack: its user takes it, or, by now content with another, ends it."""
        self._world.loop.after(TAKEN_WITHIN_S, lambda: self._adopt(key))

    def _adopt(self, key: str) -> None:
        if self.of(key) is None:
            account = key.partition(".")[0]
            owned = Owned(account, Strategy.COLDSTART, key=key, final="gone", busy=[(0.0, True)])
            self.owned.append(owned)
            self._world.loop.spawn(functools.partial(self.insist, owned), "user")

    def insist(self, owned: Owned) -> None:
        """The last word, and the same again when the product gave up."""
        loop = self._world.loop
        if not owned.final:
            owned.final = self._last_wish(owned)
        asked_at = -INSISTS_AFTER_S
        while True:
            record = self._world.record(owned.key)
            if record is not None and self._disagrees(record, owned.final) and loop.now - asked_at >= INSISTS_AFTER_S:
                asked_at = loop.now
                for verb in self._verbs(record, owned.final):
                    self.ask(owned, verb)
            if record is not None and owned.final == "up" and record["phase"] == "standby":
                self.ask_of_standby(owned, "hand_back")
            loop.sleep(LOOKS_EVERY_S)

    def _last_wish(self, owned: Owned) -> str:
        """The same with faults and without them, however many whims came before it."""
        number = next(n for n, other in enumerate(self.owned) if other is owned)
        wish = random.Random(f"wish:{self._world.seed}:{number}").choice(("up", "up", "down", "gone"))
        # its cap is the dearest price of its plan: the market may have nothing for it in the end
        return "down" if owned.deploys_in_slack and wish == "up" else wish

    @staticmethod
    def _disagrees(record: dict[str, Any], final: str) -> bool:
        return bool(record["want"] != final)

    @staticmethod
    def _verbs(record: dict[str, Any], final: str) -> tuple[str, ...]:
        if record["phase"] == "ended" and final != "gone":
            return ("restore",) if final == "up" else ("restore", "hibernate")
        return {"up": ("wake",), "down": ("hibernate",), "gone": ("terminate",)}[final]


__all__ = ["DumontError", "Owned", "Users"]
