"""What must hold: judged at every write and every effect, and once more when the world has come to rest.

I1 one machine per label, one writer. I2 no untracked machine. I3 nothing destroyed that holds what no snapshot has.
I5 and I16 snapshots (module `invariants_snapshots`). I6 epochs only grow. I7 listed moves only. I8 money (module
`invariants_money`). I9 tenants apart. I10 who has spent the day's budget has, in the end, nothing that bills, and all
of its work. I11 no secret is written down. I13 unknown is not absent. I14 the end state is what the users wanted, and
the same without faults (`__main__.judged`). I15 busy or unseen is not idle. C what only a fenced machine had is kept
(module `invariants_conflict`). F what a user wants back of an older snapshot comes, or it is said why not (module
`invariants_copies`). I0 no internal error. L everything comes to rest. M what people are told (`mail`).
I4 is I3 and I5 together while what is acknowledged is what the pointer holds; I12 is I14 under the knobs that repeat
calls.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from greenlet import getcurrent

from common.domain import instance as instances
from common.domain import rental as rentals
from common.domain.host import HostPhase
from common.domain.instance import Phase
from common.domain.liveness import FLUSH_PART
from common.domain.rental import Label, RentalState
from common.ports import Data
from tests.simulation.clock import START, Task
from tests.simulation.hosts import SAMPLE_S
from tests.simulation.invariants_money import Money
from tests.simulation.knobs import LONGEST_PAUSE_S
from tests.simulation.market import Contract
from tests.simulation.objects import Content

if TYPE_CHECKING:
    from tests.simulation.users import Owned
    from tests.simulation.world import World

Change = tuple[str, str, Data | None, Data | None]
VIOLATIONS_MAX = 5
GIVEN_UP = ("snapshot_failed", "snapshot_refused")
"""A hibernation whose snapshot fails again and again is called off."""
TOLD_BY = {
    "want": {"hibernate", "wake", "terminate", "restore", "snooze", "keep_alive", "down", "in_use", *GIVEN_UP},
    "phase": {"boot", "won", "freeze", "unfreeze", "in_use", "released", "down", "lost", "ended", "restore", *GIVEN_UP}
    | {"on_standby", "hand_back", "back", "candidate"},
    "pointer": {"snapshot", "restored_older", "purged"},
}
"""What of an instance changes only together with one of these lines of its story."""
ANSWERS_ENOUGH = 3
"""Within `silent_after_s`: two reports may be lost with the processes that heard them, the third is written down.
Reports that come sooner after one another than a process writes down what it heard count as one."""
GAP_S = 2.5 * SAMPLE_S + 1.0
REPORT_AGE_S = 120.0 + LONGEST_PAUSE_S
"""An older report of idleness is none; the commit may stand still, but then no newer report has come."""


class Oracle:
    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[str] = []
        self.phases: dict[str, str] = {}
        self.quiet_since: float | None = None
        self._labels: Counter[str] = Counter()
        self._covered: dict[str, Content | None] = {}
        """Retired label -> what the pointer held in that commit; None = its loss is excused."""

    def violate(self, code: str, what: str) -> None:
        """The story ends here: what follows from a broken invariant says nothing more."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"{code} at {self._world.loop.now:.1f} s: {what}")
        self._world.loop.stopped = True

    # --- every commit

    def see(self, changes: list[Change]) -> None:
        kinds = {after["kind"] for collection, _, before, after in changes if collection == "events" and after}
        kinds |= {"snapshot" for collection, _, before, after in changes if collection == "snapshots" and not before}
        rentals_before = {id: before["state"] for kind, id, before, _ in changes if kind == "rentals" and before}
        self._world.pairs.see_rentals(rentals_before)
        for collection, id, before, after in changes:
            self._tenancy(collection, id, after)
            if collection == "instances" and after is not None:
                self._instance(id, before, after)
                self._told(id, before, after, kinds)
                self._world.pairs.see_instance(id, before, after)
                self._world.conflicts.see_instance(id, before, after)
                self._world.copies.see_instance(id, before, after, kinds)
        for collection, id, before, after in changes:
            if collection == "rentals":
                self._rental(id, before, after)
        self._world.mail.see(changes, kinds)
        if self._world.slack:
            self._world.slack.judge.see(changes)

    def _tenancy(self, collection: str, id: str, after: Data | None) -> None:
        task = getcurrent()
        account = task.facts.get("account") if isinstance(task, Task) else None
        owner = after.get("account") if after else None
        if account and owner and account != owner:
            self.violate("I9", f"{collection}/{id} of {owner} was written for {account}")

    def _instance(self, key: str, before: Data | None, after: Data) -> None:
        old, new = Phase(before["phase"]) if before else Phase.DOWN, Phase(after["phase"])
        if old is not new and new not in instances.MOVES[old]:
            self.violate("I7", f"{key} went from {old} to {new}")
        if before and after["epoch"] < before["epoch"]:
            self.violate("I6", f"{key} went back from epoch {before['epoch']} to {after['epoch']}")
        if before and before["writer"] and after["writer"] != before["writer"] and after["epoch"] == before["epoch"]:
            self.violate("I6", f"{key} changed its writer within epoch {after['epoch']}")
        restores = new is Phase.UP and after["started_epoch"] < after["epoch"] and after["start"] == "restore"
        self.phases[key] = "restoring" if restores else str(new)
        if after["pointer"] != (before["pointer"] if before else None):
            self._world.snapshots.pointer_moved(key, before, after)
        if before and before["want"] == "up" and after["want"] == "down" and after["reason"].startswith("idle for"):
            self._idle(key, after)

    def _told(self, key: str, before: Data | None, after: Data, kinds: set[str]) -> None:
        """What changes comes with the line that says why: a write that only brings back old content has none."""
        for name, lines in TOLD_BY.items():
            if before and before[name] != after[name] and not kinds & lines:
                self.violate("I7", f"{name} of {key} changed by {kinds or 'nothing'}: {before[name]} -> {after[name]}")

    # --- idleness

    def _idle(self, key: str, after: Data) -> None:
        """Every sample of the window up to the host's last report must be there, and quiet."""
        world = self._world
        machine, host = world.machine_of(after["writer"]), world.store.docs["hosts"].get(after["writer"])
        if machine is None or host is None:
            self.violate("I15", f"{key} is idle without a host")
            return
        window_s = after["spec"]["idle_for_s"] or world.plan.timing.idle_for_s
        reported_at = (host.data["last_seen_at"] - START).total_seconds()
        since = reported_at - window_s
        seen = [(at, percent) for at, percent in machine.looks if since + 1 <= at <= reported_at]
        busy = [at for at, percent in seen if percent is None or not 0 <= percent < 5]
        edges = [since, *(at for at, _ in seen), reported_at]
        gap = max(b - a for a, b in pairwise(edges))
        age = world.loop.now - reported_at
        if busy or gap > GAP_S or age > REPORT_AGE_S:
            why = f"busy or unread at {busy[:3]}, longest gap {gap:.0f} s, reported {age:.0f} s ago"
            self.violate("I15", f"{key} was hibernated as idle: {why}")

    # --- rentals

    def _rental(self, label: str, before: Data | None, after: Data | None) -> None:
        if after is None:
            self.violate("I2", f"the record of {label} was deleted")
            return
        if before is None:
            self._pool_fits()
            return
        if before["instance_key"] and after["instance_key"] != before["instance_key"]:
            self.violate("I1", f"{label} of {before['instance_key']} was given to {after['instance_key']}")
        old, new = RentalState(before["state"]), RentalState(after["state"])
        if old is new:
            return
        if new not in rentals.MOVES[old]:
            self.violate("I7", f"{label} went from {old} to {new}")
        never_came_up = after["kind"] == "standby" and (old, new) == (RentalState.CREATING, RentalState.LOST)
        if new in (RentalState.LOST, RentalState.RELEASED) and not never_came_up:
            self._not_from_a_failed_read(label, new, after["provider"])
        if new is RentalState.LOST and not never_came_up:
            self._lost(label, after)
        if new is RentalState.HELD and not self._stands_aside(before):
            self._fenced(label)
        if new is RentalState.RELEASING:
            self._retired(label, old, before, after)

    def _pool_fits(self) -> None:
        docs = self._world.store.docs.get("rentals", {}).values()
        live = [d.id for d in docs if d.data["instance_key"] is None and d.data["state"] in ("creating", "ready")]
        if len(live) > self._world.plan.pool_size:
            self.violate("P", f"{live} are in a pool of {self._world.plan.pool_size}")

    def _not_from_a_failed_read(self, label: str, state: RentalState, market: str) -> None:
        task = getcurrent()
        failed = task.facts.get("failed_reads", set()) if isinstance(task, Task) else set()
        if f"{market} list " in failed or (state is RentalState.LOST and f"{market} get {label}" in failed):
            self.violate("I13", f"{label} became {state} after a read that failed: {failed}")

    def _lost(self, label: str, after: Data) -> None:
        contract = self.contract_of(label)
        if contract is not None and contract.listed and not contract.is_stopped:
            self.violate("K1", f"{label} was declared lost ({after['loss']}) while the market has it, {contract.state}")

    def _stands_aside(self, rental: Data) -> bool:
        """Its standby has taken over."""
        record = self._world.record(rental["instance_key"])
        return record is not None and record["writer"] is not None and record["writer"] == record["standby"]

    def is_silent(self, label: str) -> bool:
        return self._silent_s(label, if_never=self._world.loop.now) >= self._world.plan.timing.silent_after_s

    def _fenced(self, label: str) -> None:
        silent_s = self._silent_s(label, if_never=self._world.loop.now)
        if silent_s < self._world.plan.timing.silent_after_s:
            self.violate("D4", f"{label} was fenced {silent_s:.0f} s after its host was heard")
        machine, silent_after_s = self._world.machine_of(label), self._world.plan.timing.silent_after_s
        recent = [at for at in machine.answered_at if at > self._world.loop.now - silent_after_s] if machine else []
        answers = _apart(recent, FLUSH_PART * silent_after_s)
        if len(answers) >= ANSWERS_ENOUGH:
            self.violate("D4", f"{label} was fenced although its host was answered at {answers}")

    def _silent_s(self, label: str, *, if_never: float) -> float:
        """Since its host was heard, by everything that is written down."""
        docs = self._world.store.docs
        host = docs.get("hosts", {}).get(label)
        times = [doc.data["hosts"][label] for doc in docs.get("seen", {}).values() if label in doc.data["hosts"]]
        times += [host.data["last_seen_at"]] if host else []
        return (self._world.loop.clock() - max(times)).total_seconds() if times else if_never

    def _retired(self, label: str, old: RentalState, before: Data, after: Data) -> None:
        self._world.conflicts.retired(label, old, before, after["message"])
        if self._world.pairs.are_there:
            self._covered[label] = None
            self._world.pairs.retired(label, before, after["message"])
            return
        excuse = self._excuse(label, old, before)
        self._covered[label] = None
        if excuse is None:
            record = self._world.record(before["instance_key"])
            durable = self._world.snapshots.durable(record["pointer"] if record else None)
            self._covered[label] = durable
            self._nothing_is_lost(label, f"retired ({after['message']})")

    def _excuse(self, label: str, old: RentalState, before: Data) -> str | None:
        """Why the work on a machine may be given up; None = everything on it must be in the pointer."""
        world = self._world
        machine, owned = world.machine_of(label), world.users.of(before["instance_key"])
        if machine is None or not machine.has_served or machine.content is None:
            return "it never served"
        if machine.content is machine.restored:
            return "nothing was done on it since it was restored"
        if machine.contract.is_stopped or not machine.contract.listed:
            return "the market took it"
        if owned is None or owned.is_discarding:
            return "its user discards it"
        if old is RentalState.HELD:
            return "it is fenced: it was silent, and the newest snapshot went on elsewhere"
        return self._excuse_of_silence(label) or self._excuse_of_epoch(before["instance_key"], machine.served_epoch)

    def _excuse_of_silence(self, label: str) -> str | None:
        silent_s = self._silent_s(label, if_never=0.0)
        return "it was silent for the dead man's time" if silent_s >= self._world.plan.timing.dead_man_s else None

    def _excuse_of_epoch(self, key: str, served: int) -> str | None:
        record = self._world.record(key)
        started = record["started_epoch"] if record else 0
        return "it does not serve in the record's epoch" if served < started else None

    def _nothing_is_lost(self, label: str, when: str) -> None:
        machine, durable = self._world.machine_of(label), self._covered.get(label)
        if machine is None or machine.content is None or not machine.contract.listed or machine.contract.is_stopped:
            return
        if durable is None or not durable.holds(machine.content):
            lacks = machine.content.depth - (durable.depth if durable else 0)
            self.violate("I3", f"{label} was {when} with {lacks} writes that the pointer lacks")

    # --- effects on the market

    def created(self, contract: Contract) -> None:
        label, docs = contract.label, self._world.store.docs.get("rentals", {})
        self._labels[label] += 1
        if self._labels[label] > 1:
            self.violate("I1", f"two machines were rented under {label}")
        doc = docs.get(label)
        if doc is None or doc.data["create_called_at"] is None:
            self.violate("I1", f"{label} was created before it was written down")
        elif not 0 < float(doc.data["offer"]["gpu_usd_per_hour"]) <= 2.0:
            self.violate("I8", f"{label} was rented for {doc.data['offer']['gpu_usd_per_hour']} USD/h")

    def destroying(self, contract: Contract) -> None:
        world, label = self._world, contract.label
        if world.is_stranger(contract):
            self.violate("I9", f"a stranger's machine was destroyed: {label}")
            return
        doc = world.store.docs.get("rentals", {}).get(label)
        if doc is None or doc.data["state"] not in ("releasing", "released"):
            self.violate("K2", f"{label} was destroyed while its record says {doc and doc.data['state']}")
        elif self._covered.get(label) is not None:
            self._nothing_is_lost(label, "destroyed")

    def contract_of(self, label: str) -> Contract | None:
        return next((c for c in self._world.contracts() if c.label == label), None)

    # --- at rest

    def is_settled(self) -> bool:
        return not self._unrest()

    def judge_the_end(self) -> None:
        if self.violations:
            return
        for what in self._unrest():
            self.violate("L", what)
        Money(self._world).judge_the_end()
        self._no_secret_is_written()
        self._world.pairs.judge_the_end()
        self._world.copies.judge_the_end()
        if self._world.slack:
            self._world.slack.judge.judge_the_end()

    def _unrest(self) -> list[str]:
        """Everything that is not yet as it must be in the end."""
        world, found = self._world, []
        by_owner: dict[str | None, list[Contract]] = defaultdict(list)
        for contract in world.contracts():
            if not contract.listed:
                continue
            label = Label.parse(contract.label, deployment=world.deployment.id, key=world.deployment.key)
            if label and not world.is_stranger(contract):
                by_owner[world.key_of_label(contract.label)].append(contract)
        for owned in world.users.owned:
            record = world.record(owned.key)
            gpus = [c for c in by_owner.get(owned.key, []) if world.google is None or "/" not in str(c.id)]
            found += self._unrest_of(owned, record, gpus)
            if record:
                found += world.pairs.unrest(owned.key, record)
                found += [*world.conflicts.unrest(record), *world.copies.unrest(record)]
        if len(by_owner.get(None, [])) > world.plan.pool_size:
            found.append(f"{[c.label for c in by_owner[None]]} are in a pool of {world.plan.pool_size}")
        for id, doc in world.store.docs.get("rentals", {}).items():
            if doc.data["state"] in ("releasing", "released") and not doc.data["settled"]:
                found.append(f"{id} is {doc.data['state']} and not settled")
        found += world.slack.judge.unrest() if world.slack else []
        return found + world.mail.overdue() + world.pairs.left_over()

    def _unrest_of(self, owned: Owned, record: Data | None, billing: list[Contract]) -> list[str]:
        key, final, is_broke = owned.key, owned.final, owned.account in self._world.broke
        if record is None:  # who has no money left from the first minute on never gets one
            return [] if is_broke and not key else [f"{key or 'an instance'} was never made"]
        names = [f"{c.label} ({c.state})" for c in billing]
        if is_broke:
            resting = record["phase"] in ("down", "ended") and not billing
            return [] if resting else [f"{key} runs on a budget that is used up: {record['phase']}, {names}"]
        if record["phase"] == "ended" and (final == "gone" or record["pointer"] is None):
            return [f"{key} is ended and {names} bill"] if billing else []
        if final == "down":
            resting = record["phase"] == "down" and record["want"] == "down" and not billing
            return [] if resting else [f"{key} should be down: {record['phase']}, {names}"]
        if final == "gone":
            return [f"{key} should be ended: {record['phase']}, want {record['want']}, {names}"]
        return self._unrest_up(key, record, billing, names)

    def _unrest_up(self, key: str, record: Data, billing: list[Contract], names: list[str]) -> list[str]:
        machine = self._world.machine_of(record["writer"])
        serves = (
            record["phase"] == "up"
            and record["want"] == "up"
            and record["started_epoch"] == record["epoch"]
            and machine is not None
            and machine.is_running
            and not machine.has_frozen_writers
            and machine.agent is not None
            and machine.agent.phase is HostPhase.SERVING
            and machine.served_epoch == record["epoch"]
        )
        if serves and len(billing) == 1:
            return []
        return [f"{key} should serve on one machine: {record['phase']} epoch {record['epoch']}, {names}"]

    # --- money and secrets

    def _no_secret_is_written(self) -> None:
        world = self._world
        written = f"{[doc.data for docs in world.store.docs.values() for doc in docs.values()]}{world.log}"
        for secret in world.secrets:
            if secret in written:
                self.violate("I11", f"a secret is written down: {secret[:12]}...")


def _apart(times: Sequence[float], gap_s: float) -> list[float]:
    """Those that are at least so far from the one before."""
    kept: list[float] = []
    for at in times:
        if not kept or at - kept[-1] >= gap_s:
            kept.append(at)
    return kept
