"""What must hold of a GPU and its standby: what was acknowledged survives the death of any one machine.

Acknowledged is what the pointer holds, and what a mirror took while its GPU's view of the record allowed the promise.
A1 what is acknowledged is held by the machine that said so. I3 no guard of an acknowledged write that is in no snapshot
is given up while it lives. I4 who writes next, and the end, have every acknowledged write. I6 no promise of an older
epoch after one of a newer. H a planned move (a hibernation, a hand-back) loses nothing at all. T a claim counts in the
epoch that its standby sealed, and in no other. Both guards dying by themselves is outside the
promise: it is counted. C what a fenced machine alone has: module `invariants_conflict`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.domain.rental import RentalState
from common.ports import Data
from tests.simulation.objects import Content

if TYPE_CHECKING:
    from tests.simulation.hosts import Machine
    from tests.simulation.world import World

GUARDS = 2
RETIRED = (RentalState.RELEASING, RentalState.RELEASED)


@dataclass
class Promised:
    """To the user of one instance: the newest write of which he was told that it is safe."""

    content: Content
    epoch: int


class Pairs:
    def __init__(self, world: World) -> None:
        self._world = world
        self.promised: dict[str, Promised] = {}
        self.counts: Counter[str] = Counter()
        self._before: dict[str, str] = {}
        """The states, before the commit that is looked at, of the rentals that it changes."""
        self._candidates: dict[str, str | None] = {}
        """Of each instance, before its newest commit: nothing is acknowledged because a candidate has it, too."""

    @property
    def are_there(self) -> bool:
        return self._world.google is not None

    # --- what machines say and do

    def acknowledge(self, gpu: Machine, epoch: int, content: Content) -> None:
        """A mirror has taken it, and the GPU says so to its user."""
        key = gpu.key
        owned = self._world.users.of(key)
        if key is None or (owned and owned.is_discarding):
            return
        before = self.promised.get(key)
        self.counts["acknowledged"] += 1
        if before and epoch < before.epoch:
            self._violate("I6", f"{gpu.label} acknowledged in epoch {epoch}, after epoch {before.epoch}")
        elif before and not (content.holds(before.content) or before.content.holds(content)):
            lacks = _lacks(content, before.content)
            self._violate("I4", f"{gpu.label} acknowledged what lacks {lacks} promised writes")
        elif before is None or content.depth >= before.content.depth:
            self.promised[key] = Promised(content, epoch)
        else:
            before.epoch = epoch

    def sealed(self, _standby: Machine) -> None:
        self.counts["seals"] += 1

    # --- every commit

    def see_rentals(self, before: dict[str, str]) -> None:
        """Called first: who is retired in the very commit that starts elsewhere was a guard until then."""
        self._before = before

    def see_instance(self, key: str, before: Data | None, after: Data) -> None:
        if before is None or not self.are_there:
            return
        self._candidates[key] = before["cand"]
        if after["writer"] != before["writer"]:
            self._writer_changed(key, before, after)
        if after["phase"] == "down" and before["phase"] == "freezing" and after["pointer"] != before["pointer"]:
            self._planned(key, before["writer"], self._durable(after), "hibernated")
        if after["pointer"] != before["pointer"]:
            self._pointer_moved(key, before, after)
        if after["drain"] == "going" and before["drain"] != "going":
            self.counts["drains"] += 1
        if after["mirror"] and not before["mirror"]:
            self.counts["attached"] += 1

    def _pointer_moved(self, key: str, before: Data, after: Data) -> None:
        """What the pointer holds is acknowledged, whoever wrote it."""
        durable, promised = self._durable(after), self.promised.get(key)
        if after["restored_older"] not in (None, before["restored_older"]) or durable is None:
            self._excused(key, durable)
        elif promised is None or durable.holds(promised.content):
            epoch = max(after["pointer"]["taken_epoch"], promised.epoch if promised else 0)
            self.promised[key] = Promised(durable, epoch)
        elif not promised.content.holds(durable):
            lacks = _lacks(durable, promised.content)
            self._violate("I4", f"the pointer of {key} moved to what lacks {lacks} acknowledged writes")

    def _writer_changed(self, key: str, before: Data, after: Data) -> None:
        old, new = before["writer"], after["writer"]
        if new is not None and new == after["standby"]:
            self.counts["take_overs"] += 1
            self._claimed(key, before, new)
        if before["phase"] == "handover" and new is not None and new == before["cand"]:
            self.counts["hand_backs"] += 1
            machine = self._world.machine_of(new)
            self._planned(key, old, machine.content if machine else None, "handed back")
        if new is not None and new == before["held"]:
            self.counts["give_backs"] += 1
        if new is not None and after["start"] == "keep":
            machine = self._world.machine_of(new)
            if machine is not None and machine.has_disk and machine.content is None:
                self._violate("I4", f"{new} became the writer of {key} and holds nothing at all")
            elif machine is not None and machine.has_disk:
                self._has_all(key, machine.content, f"{new} became the writer")
        elif old is not None or new is not None:
            self._starts_from_the_pointer(key, before, after)

    def _claimed(self, key: str, before: Data, standby: str) -> None:
        machine = self._world.machine_of(standby)
        if machine is None or machine.link is None or not machine.has_disk:
            return
        sealed = machine.link.role.sealed
        if sealed != before["epoch"]:
            self._violate("T", f"{standby} took over {key} at epoch {before['epoch']}; it has sealed {sealed}")

    def _has_all(self, key: str, content: Content | None, what: str) -> None:
        promised = self.promised.get(key)
        if promised and (content is None or not content.holds(promised.content)):
            lacks = _lacks(content, promised.content)
            self._violate("I4", f"{what} of {key} without {lacks} acknowledged writes")

    def _starts_from_the_pointer(self, key: str, before: Data, after: Data) -> None:
        """Fine while nobody who lives has more; what both guards took with them is gone."""
        promised, durable = self.promised.get(key), self._durable(after)
        if promised is None or (durable and durable.holds(promised.content)):
            return
        owned = self._world.users.of(key)
        if owned is not None and owned.is_discarding and after["want"] == "gone":
            self._excused(key, durable)
            return
        machines = self._guards(key, promised.content, before_it=True)
        guards = [machine.label for machine in machines if self._is_known(machine, before)]
        if guards:
            lacks = _lacks(durable, promised.content)
            self._violate("I4", f"{key} starts without {lacks} acknowledged writes, which {guards} have")
            return
        self.counts["both_died"] += 1
        self._excused(key, durable)

    def _is_known(self, machine: Machine, before: Data) -> bool:
        """One of the pair of that time, and not a silent one: a silence as long as that is a death."""
        if machine.label not in (before["writer"], before["mirror"], before["standby"], before["held"]):
            return False
        state = self._state(machine.label, before_it=True)
        return state not in ("lost", *RETIRED) and not self._world.oracle.is_silent(machine.label)

    def _state(self, label: str, *, before_it: bool) -> str:
        """Of a rental; before the commit that is looked at, or as it stands."""
        now = str(self._world.store.docs["rentals"][label].data["state"])
        return self._before.get(label, now) if before_it else now

    def _planned(self, key: str, writer: str | None, content: Content | None, what: str) -> None:
        machine = self._world.machine_of(writer)
        if machine is None or machine.content is None or not machine.has_disk:
            return
        if content is None or not content.holds(machine.content):
            self._violate("H", f"{key} was {what} without {_lacks(content, machine.content)} writes of {writer}")

    # --- what is given up

    def retired(self, label: str, before: Data, why: str) -> None:
        """I3: at least as many guards stay as one death needs, or the pointer has it all."""
        key = before["instance_key"]
        machine, promised, owned = self._world.machine_of(label), self.promised.get(key), self._world.users.of(key)
        if machine is None or promised is None or owned is None or owned.is_discarding:
            return
        record = self._world.record(key)
        durable = self._durable(record) if record else None
        has_it = machine.is_alive and machine.content is not None and machine.content.holds(promised.content)
        if not has_it or (durable and durable.holds(promised.content)):
            return
        is_no_guard = before["state"] == RentalState.LOST or label == self._candidates.get(key)
        if is_no_guard or self._world.oracle.is_silent(label):
            return
        others = [other for other in self._guards(key, promised.content) if other is not machine]
        if len(others) < GUARDS:
            lacks = _lacks(durable, promised.content)
            self._violate("I3", f"{label} was retired ({why}) with {lacks} acknowledged writes in no snapshot")

    def _guards(self, key: str, content: Content, *, before_it: bool = False) -> list[Machine]:
        """Machines that live, are ours and hold all of it."""
        live = [
            machine
            for machine in self._world.machines.values()
            if machine.is_alive
            and machine.key == key
            and self._state(machine.label, before_it=before_it) not in RETIRED
        ]
        return [machine for machine in live if machine.content is not None and machine.content.holds(content)]

    # --- the end

    def unrest(self, key: str, record: Data) -> list[str]:
        """Of one that should be up: its mirror is attached, and its one standby is the record's."""
        google = self._world.google
        if google is None:
            return []
        machines = [vm.label for vm in google.sim.contracts() if self._world.key_of_label(vm.label) == key]
        if len(machines) > 1:
            return [f"{key} has {machines}"]
        if not record["spec"]["standby"]:
            free = not machines and record["standby"] is None and record["address"] is None
            return [] if free else [f"{key} wants no standby and has {machines}, address {record['address']}"]
        if record["phase"] == "up" and (record["mirror"] is None or record["mirror"] != record["standby"]):
            return [f"{key} is not mirrored: standby {record['standby']}, drain {record['drain']}, {machines}"]
        return []

    def left_over(self) -> list[str]:
        """Addresses of nobody."""
        google = self._world.google
        if google is None:
            return []
        records = [doc.data for doc in self._world.store.docs.get("instances", {}).values()]
        wanted = {r["id"] for r in records if r["address_region"] is not None}
        names = [address.name for address in google.sim.addresses()]
        return [f"address {name} is nobody's" for name in names if name.rpartition("-")[2] not in wanted]

    def judge_the_end(self) -> None:
        """I4: everything that was promised is where the next reader looks."""
        for key in self.promised:
            record, owned = self._world.record(key), self._world.users.of(key)
            if record is None or record["purge"] or (owned and owned.is_discarding):
                continue
            machine = self._world.machine_of(record["writer"])
            held = machine.content if machine else self._durable(record)
            self._has_all(key, held, "the end")

    # --- helpers

    def _durable(self, record: Data) -> Content | None:
        return self._world.snapshots.durable(record["pointer"])

    def _excused(self, key: str, durable: Content | None) -> None:
        if durable is None:
            self.promised.pop(key, None)
        else:
            self.promised[key] = Promised(durable, self.promised[key].epoch if key in self.promised else 0)

    def _violate(self, code: str, what: str) -> None:
        self._world.oracle.violate(code, what)


def _lacks(has: Content | None, wants: Content) -> Any:
    """How many writes, as far as they are on one line."""
    return wants.depth - (has.depth if has else 0)
