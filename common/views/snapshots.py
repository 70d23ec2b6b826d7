"""What an instance has kept: its snapshots, what lies between two of them, and whether one is really there."""

from datetime import datetime

from common.domain.instance import Instance
from common.domain.model import Model
from common.domain.retention import Retention
from common.domain.snapshot import DrillRecord, SnapshotRecord
from common.domain.version import Version
from common.errors import NotFound
from common.ports import App
from common.records import Kept, manifest_key_of, prefix_of, read
from common.snapshots import engine

SNAPSHOTS_SHOWN = 200


class SnapshotOut(Model):
    """One verified snapshot. `id` = <epoch>-<sequence>, unique within its instance."""

    id: str
    taken_at: datetime
    version: Version
    files: int
    bytes: int
    stored_bytes: int
    """Uploaded for it: what it shares with older ones is not counted again."""
    wasted_bytes: int
    """Kept in the store for it and not needed by it. When that is much, the next snapshot repacks."""
    proof: str
    """How its content was proven: md5, read_back or known."""
    damaged: str | None
    """The chunk that a restore found damaged."""
    is_current: bool
    """The one that the next machine starts from."""


class TermsOut(Model):
    """How an instance is kept, with the deployment's settings where it says nothing, and what was removed of it."""

    snapshot_every_s: float
    keep: Retention
    snapshot_max_cpus: int | None
    snapshot_max_mbit_s: float | None
    snapshot_freeze: bool
    prune_due_at: datetime | None
    snapshots_removed: int
    packs_removed: int
    bytes_freed: int
    last_drill: DrillRecord | None
    """The newest time that a snapshot was read back on a machine of ours."""


class NamesOut(Model):
    count: int
    listed: list[str]
    """The first of them."""


class DifferenceOut(Model):
    """In terms of content: another mode or time alone is no change."""

    older: str
    newer: str
    added: NamesOut
    changed: NamesOut
    removed: NamesOut


class CheckedOut(Model):
    """Every object is there with its size and checksum, and the manifest is authentic."""

    id: str
    files: int
    bytes: int
    stored_bytes: int
    """Of all objects that it needs."""
    torn: list[str]
    """Files that changed whenever they were read."""


def listed(app: App, account: str, id: str) -> list[SnapshotOut]:
    """The newest SNAPSHOTS_SHOWN, newest first. Raises `NotFound`."""
    instance = _instance(app, account, id)
    docs = app.store.query(
        "snapshots",
        [("instance_key", "==", instance.key)],
        order_by="taken_at",
        newest_first=True,
        limit=SNAPSHOTS_SHOWN,
    )
    records = [SnapshotRecord.model_validate(doc.data) for doc in docs] if instance.purged_at is None else []
    return [_out(instance, record) for record in records if record.given_up_at is None]


def terms(app: App, account: str, id: str) -> TermsOut:
    """Raises `NotFound`."""
    instance = _instance(app, account, id)
    spec, removed = instance.spec, app.store.get("pruned", instance.key)
    counts = removed.data if removed else {}
    last = read(app, "drills", instance.key, DrillRecord)
    return TermsOut(
        snapshot_every_s=spec.snapshot_every_s or app.settings.timing.snapshot_every_s,
        keep=spec.keep or app.settings.keep,
        snapshot_max_cpus=spec.snapshot_max_cpus,
        snapshot_max_mbit_s=spec.snapshot_max_mbit_s,
        snapshot_freeze=spec.snapshot_freeze,
        prune_due_at=instance.prune_due_at,
        snapshots_removed=counts.get("snapshots", 0),
        packs_removed=counts.get("packs", 0),
        bytes_freed=counts.get("bytes", 0),
        last_drill=last.value if last else None,
    )


def compared(app: App, account: str, id: str, older: str, newer: str) -> DifferenceOut:
    """Raises `NotFound`, and what a manifest that cannot be read raises."""
    instance = _instance(app, account, id)
    manifests = [
        engine.load_manifest(app.objects, _record(app, instance, name).manifest_key, manifest_key_of(app, instance))
        for name in (older, newer)
    ]
    found = engine.diff(*manifests)
    added, changed, removed = (
        NamesOut(count=names.count, listed=list(names.listed)) for names in (found.added, found.changed, found.removed)
    )
    return DifferenceOut(older=older, newer=newer, added=added, changed=changed, removed=removed)


def checked(app: App, account: str, id: str, snapshot: str) -> CheckedOut:
    """One listing of the store beside the manifest; what was proven when it was taken is not read back again.

    Raises `NotFound`, `SnapshotDamaged`, `SnapshotRefused`, `ObjectStoreError`.
    """
    instance = _instance(app, account, id)
    record, key = _record(app, instance, snapshot), manifest_key_of(app, instance)
    found = engine.verify(
        app.objects,
        record.manifest_key,
        prefix=prefix_of(instance),
        instance_key=key,
        proven=lambda: engine.load_manifest(app.objects, record.manifest_key, key).packs,
    )
    return CheckedOut(
        id=snapshot, files=found.files, bytes=found.bytes, stored_bytes=found.stored_bytes, torn=list(found.torn)
    )


def own_record(app: App, account: str, id: str, snapshot: str) -> tuple[Instance, Kept[SnapshotRecord]]:
    """Raises `NotFound`."""
    instance = _instance(app, account, id)
    kept = read(app, "snapshots", f"{instance.key}.{snapshot}", SnapshotRecord)
    if kept is None:
        raise NotFound(f"{instance.id} has no snapshot {snapshot}")
    return instance, kept


def _instance(app: App, account: str, id: str) -> Instance:
    kept = read(app, "instances", f"{account}.{id}", Instance) if id.isalnum() else None
    if kept is None:
        raise NotFound(f"there is no instance {id}")
    return kept.value


def _record(app: App, instance: Instance, snapshot: str) -> SnapshotRecord:
    return own_record(app, instance.account, instance.id, snapshot)[1].value


def _out(instance: Instance, record: SnapshotRecord) -> SnapshotOut:
    return SnapshotOut(
        id=f"{record.version.epoch}-{record.version.seq}",
        taken_at=record.taken_at,
        version=record.version,
        files=record.files,
        bytes=record.bytes,
        stored_bytes=record.stored_bytes,
        wasted_bytes=record.wasted_bytes,
        proof=record.proof,
        damaged=record.damaged,
        is_current=instance.pointer is not None and instance.pointer.manifest_key == record.manifest_key,
    )
