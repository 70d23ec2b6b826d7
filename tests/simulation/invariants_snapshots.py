"""I5 the durable version only grows, and what the pointer names is whole. I16 nothing is pruned that a snapshot needs,
or may need. The pointer may fall back only from a snapshot that is damaged; what rotted after it was stored is nobody's
fault here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import SnapshotRefused
from common.ports import Data
from common.snapshots.manifest import pack_key
from common.snapshots.seal import KEY_SHAPE, unseal
from tests.simulation.objects import Content, Shot

if TYPE_CHECKING:
    from tests.simulation.world import World


class Snapshots:
    def __init__(self, world: World) -> None:
        self._world = world
        self._pruned: set[str] = set()
        """Keys that were deleted in the bucket, but for purges."""

    # --- the pointer

    def pointer_moved(self, key: str, before: Data | None, after: Data) -> None:
        old, new = before["pointer"] if before else None, after["pointer"]
        fell_back = before is not None and after["restored_older"] not in (None, before["restored_older"])
        if fell_back:
            if self._is_sound(key, old):
                self._violate("I5", f"{key} fell back from {old['id']}, which is sound")
            return
        if new is None and after["purged_at"]:
            return
        if new is None:
            self._violate("I5", f"{key} lost its pointer {old and old['id']}")
            return
        if why := self.damage(key, new):
            self._violate("I5", f"the pointer of {key} moved to {new['id']}: {why}")
        content, durable = self._world.taken.get(new["manifest_key"]), self.durable(old)
        if content is None:
            self._violate("I5", f"the pointer of {key} moved to {new['manifest_key']}, which nobody took")
        elif old and (_order(new) <= _order(old) or (durable and not content.holds(durable))):
            self._violate("I5", f"the durable version of {key} went back from {old['id']} to {new['id']}")

    # --- what is deleted from the bucket

    def deleting(self, keys: Sequence[str]) -> None:
        """Told by the bucket, of whatever the control plane deletes there: hosts delete nothing."""
        for owned in self._world.users.owned:
            prefix, record = f"instances/{owned.key}/", self._world.record(owned.key)
            if record and not record["purge"] and (doomed := {key for key in keys if key.startswith(prefix)}):
                self._needed_by_none(owned.key, record, doomed)
                self._world.conflicts.deleting(owned.key, record, doomed)
                self._world.copies.deleting(owned.key, record, doomed)

    def _needed_by_none(self, key: str, record: Data, doomed: set[str]) -> None:
        """I16: no snapshot that stands or may yet stand loses its manifest, and no manifest in the bucket a pack."""
        snapshots = self._world.store.docs.get("snapshots", {}).values()
        kinds = {doc.data["manifest_key"]: doc.data["given_up_at"] for doc in snapshots}
        for name in doomed:
            if record["pointer"] and record["pointer"]["manifest_key"] == name:
                self._violate("I16", f"the pointer's manifest {name} of {key} was deleted")
            elif kinds.get(name, 0) is None:
                self._violate("I16", f"{name} of {key} was deleted, and its record stands")
            elif (named := KEY_SHAPE.fullmatch(name)) and name not in kinds:
                order = (int(named["epoch"]), int(named["epoch"]), int(named["seq"]))
                if order[0] == record["epoch"] and (not record["pointer"] or order > _order(record["pointer"])):
                    self._violate("I16", f"{name} of {key} was deleted before it was judged")
        for name, held in self._world.bucket.objects.items():
            if name not in doomed and KEY_SHAPE.fullmatch(name) and name.startswith(f"instances/{key}/"):
                self._keeps_its_packs(key, name, held.data, doomed)
        self._pruned |= doomed

    def _keeps_its_packs(self, key: str, name: str, sealed: bytes, doomed: set[str]) -> None:
        try:
            manifest = unseal(sealed, name, self._world.data_key(key))
        except SnapshotRefused:
            return  # nobody can ever start from it
        lost = [pack for pack in manifest.packs if pack_key(manifest.prefix, pack) in doomed]
        if lost:
            self._violate("I16", f"pack {lost[0][:8]} was deleted, and {name} needs it")

    def sending(self, shot: Shot) -> None:
        """I16 of a snapshot that ends now: what it counts on was not deleted while it was taken."""
        for pack in shot.manifest.packs:
            if pack_key(shot.manifest.prefix, pack) in self._pruned:
                self._violate("I16", f"{shot.manifest.key} counts on pack {pack[:8]}, which was pruned meanwhile")

    def durable(self, pointer: Data | None) -> Content | None:
        return self._world.taken.get(pointer["manifest_key"]) if pointer else None

    def _is_sound(self, key: str, pointer: Data) -> bool:
        return not self.damage(key, pointer, rot_counts=True)

    def damage(self, key: str, pointer: Data, *, rot_counts: bool = False) -> str | None:
        """What is wrong with a snapshot in the bucket. What broke after it was stored is nobody's fault here."""
        bucket, manifest_key = self._world.bucket, pointer["manifest_key"]
        stored = bucket.objects.get(manifest_key)
        if stored is None or stored.is_rotten:
            return (
                "its manifest is damaged"
                if rot_counts or (stored is None and manifest_key not in bucket.gone)
                else None
            )
        instance_key = self._world.data_key(key)
        try:
            manifest = unseal(stored.data, manifest_key, instance_key)
        except Exception as error:  # noqa: BLE001 - whatever it is, the manifest is not whole
            return f"its manifest is not authentic: {error}"
        for name, pack in manifest.packs.items():
            held = bucket.objects.get(pack_key(manifest.prefix, name))
            if held is None:
                if rot_counts or pack_key(manifest.prefix, name) not in bucket.gone:
                    return f"pack {name[:8]} is missing"
            elif (rot_counts or not held.is_rotten) and (len(held.data) != pack.size or _blake3(held.data) != name):
                return f"pack {name[:8]} is damaged"
        return None

    def _violate(self, code: str, what: str) -> None:
        self._world.oracle.violate(code, what)


def _order(pointer: Data) -> tuple[int, int, int]:
    return pointer["taken_epoch"], pointer["version"]["epoch"], pointer["version"]["seq"]


def _blake3(data: bytes) -> str:
    from blake3 import blake3

    return str(blake3(data).hexdigest())
