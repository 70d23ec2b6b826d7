"""The new writer has what the pointer holds, or the control plane decides what it gets instead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from common.domain.host import HostPhase, OrderResult
from common.domain.instance import Instance, Phase, Pointer, RestoredOlder, Want
from common.domain.orders import failed_restore
from common.domain.outbox import Kind
from common.domain.snapshot import SnapshotRecord
from common.errors import IllegalMove, ObjectMissing, ObjectStoreError, SnapshotDamaged, SnapshotError, SnapshotRefused
from common.ports import App, Where, Write, every
from common.records import Kept, World, event, manifest_key_of, read
from common.snapshots import engine
from common.workflows.outbox import announce


def request_wake(app: App, world: World, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """The wish to run; raises `IllegalMove` when it is ending or ended."""
    instance = world.instance.value
    if instance.phase is Phase.ENDED or instance.want is Want.GONE:
        raise IllegalMove(f"{instance.id} is terminated; restore it instead")
    wished = instance.having(want=Want.UP, reason="wake", failure=None)
    app.store.commit([world.instance.becomes(wished), event(app, instance, "wake", "asked to wake", now), *also])
    return wished


def request_restore(app: App, world: World, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """ended -> down, wanted up: brings a terminated instance back while its snapshots are kept."""
    instance = world.instance.value
    if instance.phase is not Phase.ENDED:
        raise IllegalMove(f"{instance.id} is not terminated; wake it instead")
    if instance.purge or instance.pointer is None:
        raise IllegalMove(f"{instance.id} has no snapshot left to restore")
    back = instance.to(Phase.DOWN, at=now).having(
        want=Want.UP, reason="restore", discard=False, ended_at=None, keep_until=None, failure=None
    )  # fmt: skip
    app.store.commit([world.instance.becomes(back), event(app, instance, "restore", "asked to come back", now), *also])
    return back


def note_started(app: App, world: World, now: datetime) -> bool:
    """The writer reports that it serves in the record's epoch: the instance runs."""
    instance, host = world.instance.value, world.writer_host
    if host is None or instance.started_epoch == instance.epoch:
        return False
    if host.phase not in (HostPhase.SERVING, HostPhase.FROZEN) or host.epoch != instance.epoch:
        return False
    if instance.start == "keep":
        # the machine goes on with what it has, and whoever is told of that was told when it was decided
        kept_on = instance.having(started_epoch=instance.epoch, snapshot_failures=0, snapshot_not_before=None)
        app.store.commit([world.instance.becomes(kept_on)])
        return True
    running = instance.having(
        started_epoch=instance.epoch,
        snapshot_failures=0,
        snapshot_not_before=None,
        snapshot_due_from=now,
        rounds=0,
        tried=(),
        recovering=False,
        failure=None,
    )
    if instance.pointer:
        running = running.woken(now)
    text = "the workspace is back on another machine" if instance.recovering else "the workspace is ready"
    told = announce(app, instance, Kind.RUNNING, "running", text, now, is_back=instance.recovering)
    app.store.commit([world.instance.becomes(running), *told])
    return True


def fall_back(app: App, world: World, now: datetime) -> bool:
    """The engine refused a damaged snapshot and changed nothing: the writer gets the sound one before it."""
    instance = world.instance.value
    result = failed_restore(instance, world.writer_host)
    if result is None or instance.pointer is None:
        return False
    if result.error != SnapshotDamaged.code and not _manifest_is_bad(app, instance, result):
        return False
    return _fall_back(app, world, instance.pointer, result, now)


def _manifest_is_bad(app: App, instance: Instance, result: OrderResult) -> bool:
    """The host found no manifest, or not ours: believed when the control plane reads the same."""
    if instance.pointer is None or result.error not in (ObjectMissing.code, SnapshotRefused.code):
        return False
    try:
        engine.load_manifest(app.objects, instance.pointer.manifest_key, manifest_key_of(app, instance))
    except (ObjectMissing, SnapshotRefused):
        return True
    return False


def _fall_back(app: App, world: World, damaged: Pointer, result: OrderResult, now: datetime) -> bool:
    """Only here may the durable version go back: recorded, the user told what is missing, the damaged one kept."""
    instance = world.instance.value
    bad = read(app, "snapshots", damaged.id, SnapshotRecord)
    sound = _newest_sound(app, instance, damaged)
    older = sound.value if sound else None
    restored = RestoredOlder(
        damaged=damaged.id,
        restored=older.id if older else None,
        chunk=result.chunk or "",
        missing=_missing(app, instance, older, damaged),
        at=now,
    )
    pointer = older and Pointer(
        id=older.id,
        manifest_key=older.manifest_key,
        version=older.version,
        taken_epoch=older.taken_epoch,
        at=older.taken_at,
        files=older.files,
        bytes=older.bytes,
    )
    back = instance.having(
        pointer=pointer, epoch=instance.epoch + 1, restored_older=restored, conflicts=instance.conflicts_anew
    )
    writes: list[Write] = [world.instance.becomes(back)]
    if sound:
        writes.append(sound.unchanged())  # a prune may be about to give it up
    if bad:
        writes.append(bad.becomes(bad.value.model_copy(update={"damaged": result.chunk or "unknown"})))
    text = f"snapshot {damaged.id} is damaged ({result.chunk}); using {older.id if older else 'an empty workspace'}"
    app.store.commit([*writes, *announce(app, instance, Kind.RESTORED_OLDER, "restored_older", text, now)])
    return True


def _newest_sound(app: App, instance: Instance, damaged: Pointer) -> Kept[SnapshotRecord] | None:
    """The pointer only ever moved forward, so the newest record is the newest version."""
    where: list[Where] = [("instance_key", "==", instance.key)]
    docs = every(app.store, "snapshots", where, order_by="taken_at", newest_first=True)
    records = (Kept(doc, SnapshotRecord.model_validate(doc.data)) for doc in docs)
    return next((kept for kept in records if kept.value.may_start and kept.value.order < damaged.order), None)


def _missing(app: App, instance: Instance, older: SnapshotRecord | None, damaged: Pointer) -> dict[str, object]:
    key = manifest_key_of(app, instance)
    try:
        newer = engine.load_manifest(app.objects, damaged.manifest_key, key)
        if older is None:
            return {"everything": len(newer.entries)}
        lost = engine.diff(engine.load_manifest(app.objects, older.manifest_key, key), newer)
        return {
            name: {"count": names.count, "listed": list(names.listed)}
            for name, names in (("added", lost.added), ("changed", lost.changed), ("removed", lost.removed))
        }
    except (SnapshotError, ObjectStoreError) as error:
        return {"unknown": str(error)}
