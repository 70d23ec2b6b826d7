"""C: what only a fenced machine had is kept apart until the workspace's own snapshots have it (decision 0013).

A held GPU that is let go (a snapshot covers it, it is handed back or hibernated) has nothing alone, unless it was
silent, could not save it three times, was waited for SAVE_MAX_S, or its place is needed for a newer one. On a standby
that sealed in vain nothing is put in place, and it is not let go, before what was written there since the seal is
saved. A conflict that the record names is whole in the bucket; it leaves the record once the pointer has it beside the
workspace's files, or when its machine writes again. No prune takes what is named, or saved and not judged yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.domain.conflict import SAVE_MAX_S
from common.domain.host import SAVE_TRIES, OrderResult, epoch_of_save
from common.domain.instance import Instance
from common.domain.rental import RentalState
from common.ports import Data
from tests.simulation.objects import Content

if TYPE_CHECKING:
    from tests.simulation.hosts import Machine
    from tests.simulation.world import World

UNPLANNED = {"a newer machine is held", "lost while held", "terminated, discarding"}
"""Why a held machine is let go that cannot be waited for: there is one place for one."""
LET_GO = "the standby is let go"


class Conflicts:
    def __init__(self, world: World) -> None:
        self._world = world
        self.counts: Counter[str] = Counter()
        self._named: set[str] = set()
        """Manifest keys that some record named, ever."""
        self._sealed: dict[str, Content | None] = {}
        """Standby -> its content when it sealed; what came on top is a branch."""
        self._saved: dict[tuple[str, Content], str] = {}
        """(label, what it had) -> the manifest of the snapshot apart."""
        self._failed: Counter[str] = Counter()
        """Saves of each machine that came to nothing."""

    # --- what machines do

    def sealed(self, standby: Machine) -> None:
        self._sealed[standby.label] = standby.content

    def saved(self, machine: Machine, manifest_key: str) -> None:
        """Its engine says so."""
        assert machine.content
        self.counts["saved"] += 1
        self._saved[machine.label, machine.content] = manifest_key

    def had_nothing(self, machine: Machine) -> None:
        self.counts["nothing_alone"] += 1
        self._sealed.pop(machine.label, None)

    def failed(self, machine: Machine) -> None:
        self.counts["save_failed"] += 1
        self._failed[machine.label] += 1

    def brought(self, machine: Machine, manifest_key: str) -> None:
        """It lies in a folder of that machine's workspace from now on."""
        self.counts["brought"] += 1
        if manifest_key not in self._named or not manifest_key.startswith(f"instances/{machine.key}/"):
            self._violate(f"{machine.label} was brought {manifest_key}, which no record of {machine.key} names")

    def overwriting(self, standby: Machine) -> None:
        """Something from elsewhere is about to be put in place here."""
        if self._has_branch(standby):
            self._violate(f"what was written on {standby.label}, which sealed in vain, is overwritten unsaved")
        self._sealed.pop(standby.label, None)

    def _has_branch(self, standby: Machine) -> bool:
        """Something that it alone has, and could have saved."""
        at_seal, content = self._sealed.get(standby.label), standby.content
        if content is None or at_seal is None or content is at_seal or self._is_kept(standby, content):
            return False
        return content.holds(at_seal) and self._failed[standby.label] < SAVE_TRIES

    def _is_kept(self, machine: Machine, content: Content) -> bool:
        """Saved, and named by the record or still as good as when it was."""
        saved, key = self._saved.get((machine.label, content)), machine.key or ""
        if saved is None:
            return False
        return saved in self._named or self._world.snapshots.damage(key, {"manifest_key": saved}) is None

    # --- every commit

    def see_instance(self, key: str, before: Data | None, after: Data) -> None:
        if before is not None and after["writer"] != before["writer"]:
            self._sealed.pop(after["writer"], None)
        for label in self._refused(before, after) if before is not None else ():
            self._failed_to_verify(key, label)
        if before is None or after["conflicts"] == before["conflicts"]:
            return
        were, are = ({each["manifest_key"]: each for each in record["conflicts"]} for record in (before, after))
        for manifest_key in are.keys() - were.keys():
            self._comes(key, manifest_key)
        for manifest_key in were.keys() - are.keys():
            self._goes(key, were[manifest_key], before, after)

    @staticmethod
    def _refused(before: Data, after: Data) -> Iterator[str]:
        """Machines of which the record says that what they saved did not verify."""
        for role, known, tries in (("held", "conflicts_of", "save_tries"), ("standby", "refusals_of", "refusal_tries")):
            if after[role] is None or after[role] != before[role]:
                continue
            gives_up = after[known] > before[known] and after["conflicts"] == before["conflicts"]
            if gives_up or after[tries] > before[tries]:
                yield after[role]

    def _failed_to_verify(self, key: str, label: str) -> None:
        """It counts where the snapshot is broken, or a listing may have lacked what is there."""
        saved = [manifest_key for (machine, _), manifest_key in self._saved.items() if machine == label]
        may_lack = "objects_stale_list" in self._world.faults.on
        if saved and (may_lack or self._world.snapshots.damage(key, {"manifest_key": saved[-1]}) is not None):
            self._failed[label] += 1

    def _comes(self, key: str, manifest_key: str) -> None:
        self.counts["kept"] += 1
        self._named.add(manifest_key)
        if manifest_key not in self._world.taken:
            self._violate(f"{key} names the conflict {manifest_key}, which nobody took")
        elif why := self._world.snapshots.damage(key, {"manifest_key": manifest_key}):
            self._violate(f"{key} names the conflict {manifest_key}: {why}")

    def _goes(self, key: str, conflict: Data, before: Data, after: Data) -> None:
        writes_again = after["writer"] is not None and after["writer"] == before["held"]
        if writes_again and conflict["epoch"] == before["fenced"]:
            return
        pointed = self._world.snapshots.durable(after["pointer"])
        if pointed is None or conflict["manifest_key"] not in pointed.aside:
            self._violate(f"{key} forgets {conflict['manifest_key']}, which its newest snapshot lacks")

    def retired(self, label: str, old: RentalState, before: Data, why: str) -> None:
        machine, owned = self._world.machine_of(label), self._world.users.of(before["instance_key"])
        if machine is None or owned is None or owned.is_discarding or not machine.is_alive or not machine.is_running:
            return
        if self._world.oracle.is_silent(label):
            return
        if old is RentalState.HELD and why not in UNPLANNED:
            self._held_goes(machine, before, why)
        if machine.is_standby and why == LET_GO and old is not RentalState.LOST:
            self._standby_goes(machine, before["instance_key"])

    def _held_goes(self, machine: Machine, before: Data, why: str) -> None:
        held_s = (self._world.loop.clock() - before["at"]).total_seconds()
        content = machine.content
        if content is None or held_s >= SAVE_MAX_S or self._failed[machine.label] >= SAVE_TRIES:
            return
        key, saved = before["instance_key"], self._saved.get((machine.label, content))
        is_spoilt = saved is not None and self._world.snapshots.damage(key, {"manifest_key": saved}) is not None
        if not is_spoilt and not self._is_elsewhere(content, key):
            said = "" if saved is None else f", and {saved} is whole"
            self._violate(f"{machine.label} was let go ({why}) after {held_s:.0f} s with what it alone had{said}")

    def _standby_goes(self, standby: Machine, key: str) -> None:
        record = self._world.record(key)
        host = self._world.store.docs["hosts"].get(standby.label)
        has_said = host is not None and host.data["refused"] is not None
        if record and record["want"] != "gone" and has_said and self._has_branch(standby):
            self._violate(f"{standby.label}, which sealed in vain, was let go unsaved")

    def _is_elsewhere(self, content: Content, key: str) -> bool:
        record = self._world.record(key)
        if record is None:
            return True
        writer = self._world.machine_of(record["writer"])
        held = [self._world.snapshots.durable(record["pointer"]), writer.content if writer else None]
        held += [self._world.taken.get(each["manifest_key"]) for each in record["conflicts"]]
        return any(other is not None and other.holds(content) for other in held)

    # --- the bucket

    def deleting(self, key: str, record: Data, doomed: set[str]) -> None:
        """No prune takes what the record names, nor what has just been saved and is not judged yet."""
        for conflict in record["conflicts"]:
            if conflict["manifest_key"] in doomed:
                self._violate(f"the conflict {conflict['manifest_key']} of {key} was deleted")
        for label, known in ((record["held"], record["conflicts_of"]), (record["standby"], record["refusals_of"])):
            host = self._world.store.docs.get("hosts", {}).get(label) if label else None
            progress = host.data["progress"] if host else {}
            last, report = progress.get("last"), progress.get("snapshot")
            epoch = epoch_of_save(OrderResult.model_validate(last)) if last else None
            is_open = epoch is not None and epoch > known and last["ok"] and report and report["order"] == last["id"]
            if is_open and report["manifest_key"] in doomed:
                self._violate(f"{report['manifest_key']} of {key}, saved by {label}, was deleted before it was judged")

    # --- at rest

    def unrest(self, record: Data) -> list[str]:
        """A GPU that serves has been brought what it could be."""
        conflicts = Instance.model_validate(record).conflicts
        waiting = [each.manifest_key for each in conflicts if each.is_waiting]
        return [f"{record['id']} waits for {waiting}"] if waiting and record["phase"] == "up" else []

    def _violate(self, what: str) -> None:
        self._world.oracle.violate("C", what)


__all__ = ["Conflicts"]
