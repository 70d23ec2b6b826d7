"""The engine of a simulated machine: it takes its time, and breaks in every way that an engine can."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from common.domain.host import Order, SnapshotReport
from common.domain.version import Version
from common.errors import DiskFull, DumontError, ObjectStoreError, SnapshotDamaged, SnapshotError
from tests.simulation import objects
from tests.simulation.objects import Shot

if TYPE_CHECKING:
    from tests.simulation.hosts import Machine

TAKE_S, RESTORE_S = (2.0, 20.0), (3.0, 40.0)


class SimWork:
    """One order's engine child. What it does to the bucket and the disk happens when it ends, unless it was killed."""

    def __init__(self, machine: Machine, task: dict[str, Any]) -> None:
        self.machine, self.task = machine, task
        self.order = Order.model_validate(task["order"])
        self.epoch = int(task["epoch"])
        self._result: dict[str, Any] | None = None
        self._is_dead = False
        world, rng = machine.world, machine.rng
        takes_s = rng.uniform(*(TAKE_S if task["kind"] == "snapshot" else RESTORE_S)) / machine.fate.line
        self.ends_at = world.loop.now + takes_s
        self._began_at = world.loop.now
        self._frozen_content = machine.content
        self._shot: Shot | None = None
        """Its packs are sent, or fail to be, some time before its manifest."""
        if task["kind"] == "snapshot":
            world.loop.at(world.loop.now + takes_s * rng.random(), self._send_packs)
        if world.strike("engine_dies", machine):
            self.ends_at = world.loop.now + takes_s * rng.random()
            self._result = {"ok": False, "error": "engine_died", "detail": "killed"}
            if task["kind"] == "save":
                world.conflicts.failed(machine)
        world.loop.at(self.ends_at, self._end)

    def finished(self) -> bool:
        return self._result is not None and self.machine.world.loop.now >= self.ends_at

    def progress(self) -> dict[str, Any]:
        return {}

    def result(self) -> dict[str, Any]:
        assert self._result is not None
        if self.order.kind == "bring" and not self._result["ok"]:
            self.machine.world.copies.failed(self.order)
        return self._result

    def kill(self) -> None:
        self._is_dead = True

    def _end(self) -> None:
        """Late when the whole machine stands still meanwhile."""
        machine, loop = self.machine, self.machine.world.loop
        if self._is_dead or self._result is not None or not machine.is_running:
            return
        if machine.standing_until > loop.now:
            self.ends_at = machine.standing_until + 1.0
            loop.at(self.ends_at, self._end)
            return
        try:
            done = {"snapshot": self._snapshot, "copy": self._fetch, "rewind": self._fetch}
            done |= {"save": self._save, "bring": self._bring}
            self._result = done.get(self.task["kind"], self._restore)()
        except DumontError as error:
            chunk = error.chunk if isinstance(error, SnapshotDamaged) else None
            self._result = {"ok": False, "error": error.code, "detail": str(error), "chunk": chunk}

    def _send_packs(self) -> None:
        """The first part of a snapshot; one that goes wrong is tried again at its end, and then tells."""
        machine, now = self.machine, self.machine.world.loop.now
        if self._is_dead or self._result is not None or not machine.is_running or machine.standing_until > now:
            return
        with contextlib.suppress(DumontError):
            self._shot = self._packed()

    def _packed(self) -> Shot:
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        if machine.disk_full_until > world.loop.now:
            raise DiskFull("no room to stage packs")
        self._require_bucket()
        # one of a pair has numbered its changes: those of a later number are not counted on
        is_late = machine.has_frozen_writers and machine.link is None
        content = machine.content if is_late else self._frozen_content
        if content is None:
            world.oracle.violate("I5", f"{machine.label} was told to keep a workspace that it has not got")
            raise SnapshotError("there is no workspace")
        shot = objects.take(
            content,
            prefix=args["prefix"],
            instance_key=bytes.fromhex(args["instance_key"]),
            version=Version(epoch=self.epoch, seq=self.task["seq"]),
            taken_at=machine.now().isoformat(),
            previous=self._previous(args),
            salt=f"{machine.label} {self.order.id} {world.loop.now}",
        )
        self._upload(shot)
        return shot

    def _snapshot(self) -> dict[str, Any]:
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        shot = self._shot or self._packed()
        if world.loop.now - self._began_at > args["max_s"]:
            raise SnapshotError("the snapshot took too long")
        self._send_manifest(shot)
        report = SnapshotReport(
            order=self.order.id,
            manifest_key=shot.manifest.key,
            epoch=self.epoch,
            seq=self.task["seq"],
            fz=args.get("fz"),
            files=len(shot.manifest.entries) - 1,
            bytes=shot.manifest.bytes,
            stored_bytes=len(shot.sealed),
        )
        machine.account.sim.traffic(machine.contract.id, 50_000_000, 0, world.loop.clock())
        return {"ok": True, "snapshot": report.model_dump(mode="json"), "uploaded_bytes": 50_000_000}

    def _save(self) -> dict[str, Any]:
        """What only this machine has, which is its content unless the mirror has that too."""
        machine, link = self.machine, self.machine.link
        before = machine.world.taken.get(self.task["args"]["previous"] or "")
        is_mirrored = self.task["args"]["mirrored"] and link is not None and link.sent is machine.content
        if machine.content is None or is_mirrored or (before and before.holds(machine.content)):
            machine.world.conflicts.had_nothing(machine)
            return {"ok": True}
        self.epoch = int(self.task["args"]["of"])
        try:
            result = self._snapshot()
        except DumontError:
            machine.world.conflicts.failed(machine)
            raise
        machine.world.conflicts.saved(machine, result["snapshot"]["manifest_key"])
        return result

    def _bring(self) -> dict[str, Any]:
        """Beside what is there, which stays what it is."""
        self._require_bucket()
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        key = bytes.fromhex(args["instance_key"])
        objects.restore(world.bucket, args["manifest_key"], key, world.workspaces.known)
        if world.copies.is_one(self.order):
            world.copies.brought(machine, self.order)
            machine.content = world.workspaces.write(machine.content)
        else:
            world.conflicts.brought(machine, args["manifest_key"])
            machine.content = world.workspaces.write(machine.content, brought=frozenset({args["manifest_key"]}))
        return {"ok": True, "downloaded_bytes": 50_000_000}

    def _previous(self, args: dict[str, Any]) -> objects.Manifest | None:
        """As `host.task` does: it raises when the manifest is gone or damaged."""
        if args.get("anew") or not args.get("previous"):
            return None
        bucket, key = self.machine.world.bucket, bytes.fromhex(args["instance_key"])
        return objects.fetch_manifest(bucket, args["previous"], key)

    def _upload(self, shot: Shot) -> None:
        machine, world, bucket = self.machine, self.machine.world, self.machine.world.bucket
        if world.strike("upload_quota", machine):
            raise ObjectStoreError("403 cap exceeded")
        lacks_packs = world.strike("upload_partial", machine)
        for key, body in shot.packs:
            if lacks_packs:
                continue
            bucket.put(key, body)
            if world.strike("upload_truncated", machine):
                bucket.put(key, body[:-1])
            elif world.strike("upload_garbled", machine):
                bucket.garble(key)

    def _send_manifest(self, shot: Shot) -> None:
        machine, world, bucket = self.machine, self.machine.world, self.machine.world.bucket
        self._require_bucket()
        if world.strike("upload_dies", machine):
            raise ObjectStoreError("the upload broke off")
        world.taken[shot.manifest.key] = shot.content
        world.snapshots.sending(shot)
        bucket.put(shot.manifest.key, shot.sealed)
        if world.strike("manifest_garbled", machine):
            bucket.garble(shot.manifest.key)

    def _fetch(self) -> dict[str, Any]:
        """The pointer's content, on a machine that does not write: whatever it held is set aside."""
        machine, args = self.machine, self.task["args"]
        if machine.fate.has_small_disk:
            return {"ok": False, "error": "disk_full", "detail": "too small"}
        self._require_bucket()
        key = bytes.fromhex(args["instance_key"])
        machine.hold(objects.restore(machine.world.bucket, args["manifest_key"], key, machine.world.workspaces.known))
        return {"ok": True, "downloaded_bytes": 50_000_000}

    def _restore(self) -> dict[str, Any]:
        machine, world, args = self.machine, self.machine.world, self.task["args"]
        if machine.served_epoch == self.epoch and machine.content is not machine.restored:
            world.oracle.violate("I3", f"{machine.label} restored again over its own work of epoch {self.epoch}")
        if args.get("manifest_key"):
            if machine.fate.has_small_disk:
                return {"ok": False, "error": "disk_full", "detail": "too small"}
            self._require_bucket()
            key = bytes.fromhex(args["instance_key"])
            machine.content = objects.restore(world.bucket, args["manifest_key"], key, world.workspaces.known)
        elif machine.content is None:
            machine.content = world.workspaces.write(None)
        machine.has_served, machine.served_epoch, machine.restored = True, self.epoch, machine.content
        machine.account.sim.traffic(machine.contract.id, 0, 50_000_000, world.loop.clock())
        return {"ok": True, "downloaded_bytes": 50_000_000}

    def _require_bucket(self) -> None:
        if not self.machine.reaches("objects"):
            raise ObjectStoreError("the object store did not answer")
