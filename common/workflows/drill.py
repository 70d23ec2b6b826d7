"""The restore drill: snapshots are read back on a machine of ours, by schedule and on demand.

A verification asks the store and believes the host's word on what it sealed; a drill opens it. Bounded by bytes, so
that it fits a function: a large snapshot is drilled in samples, drawn anew each time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from common.domain.instance import Instance
from common.domain.outbox import Kind
from common.domain.snapshot import DrillRecord, SnapshotRecord
from common.errors import DumontError, NotFound, ObjectMissing, SnapshotError
from common.ports import App, Write, every
from common.records import Kept, dump, event, manifest_key_of, prefix_of, read
from common.snapshots import engine
from common.workflows.outbox import announce

RUN_S = 400.0
"""No further instance is begun after that."""
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""Since when the next snapshot is due after a damaged one: it is due now."""


@dataclass
class Summary:
    drilled: int = 0
    damaged: list[str] = field(default_factory=list)
    """Instances."""
    unanswered: int = 0
    """Where the store gave no answer, and nothing is known."""


def run(app: App, now: datetime) -> Summary:
    """Every instance that is due, the longest waiting first."""
    summary = Summary()
    keys = [doc.id for doc in every(app.store, "instances", [("drill_due_at", "<=", now)])]
    for key in keys:
        if (app.clock() - now).total_seconds() > RUN_S:
            break
        try:
            found = drill_newest(app, key, app.clock())
            summary.drilled += found is not None
            if found and not found.is_sound:
                summary.damaged.append(key)
        except DumontError as error:
            summary.unanswered += 1
            app.log("drill_failed", key=key, error=f"{error.code}: {error}")
    return summary


def drill_newest(app: App, key: str, now: datetime) -> DrillRecord | None:
    """The pointer's snapshot; None = there is none. Raises what the stores raise: then nothing is known."""
    kept = read(app, "instances", key, Instance)
    if kept is None or kept.value.pointer is None:
        if kept:
            app.store.commit([kept.becomes(kept.value.having(drill_due_at=None))])
        return None
    record = read(app, "snapshots", kept.value.pointer.id, SnapshotRecord)
    if record is None:
        raise NotFound(f"the record {kept.value.pointer.id} is gone")
    return drill(app, kept.value, record, now)


def drill(app: App, instance: Instance, record: Kept[SnapshotRecord], now: datetime) -> DrillRecord:
    """One snapshot. What is damaged is written down, told, and, where the machine still runs, taken anew in full."""
    found = _found(app, instance, record.value, now)
    if not found.is_sound:
        app.store.commit([record.becomes(record.value.model_copy(update={"damaged": found.damage}))])
    _note(app, instance, found, now)
    return found


def _found(app: App, instance: Instance, record: SnapshotRecord, now: datetime) -> DrillRecord:
    name = f"{record.version.epoch}-{record.version.seq}"
    seed = app.random(16)
    key = manifest_key_of(app, instance)
    try:
        manifest = engine.load_manifest(app.objects, record.manifest_key, key)
        engine.verify(
            app.objects,
            record.manifest_key,
            prefix=prefix_of(instance),
            instance_key=key,
            proven=lambda: manifest.packs,
        )
        drilled = engine.drill(
            app.objects,
            manifest,
            instance_key=key,
            most_bytes=app.settings.drill_most_mb << 20,
            shuffle=lambda names: sorted(names, key=lambda name: hashlib.blake2b(name.encode(), key=seed).digest()),
        )
    except (SnapshotError, ObjectMissing) as error:
        return DrillRecord(at=now, snapshot=name, is_sound=False, damage=f"{error.code}: {error}"[:300])
    return DrillRecord(
        at=now,
        snapshot=name,
        is_sound=True,
        is_whole=drilled.is_whole,
        files=drilled.files,
        of_files=drilled.of_files,
        bytes=drilled.bytes,
        of_bytes=drilled.of_bytes,
        seconds=(app.clock() - now).total_seconds(),
    )


def _note(app: App, seen: Instance, found: DrillRecord, now: datetime) -> None:
    """The newest drill, the next one, and a line of the story: guarded by the instance as it is now."""
    app.store.put("drills", seen.key, dump(found))
    kept = read(app, "instances", seen.key, Instance)
    if kept is None:
        return
    due_at = now + timedelta(seconds=app.settings.timing.drill_every_s)
    noted = kept.value.having(drill_due_at=due_at)
    if found.is_sound:
        share = "whole" if found.is_whole else f"{found.bytes} of {found.of_bytes} bytes"
        text = f"snapshot {found.snapshot} was read back: {share}, {found.files} of {found.of_files} files, all sound"
        app.store.commit([kept.becomes(noted), event(app, noted, "drill", text, now)])
        return
    told = f"snapshot {found.snapshot} is damaged: {found.damage}"
    if kept.value.is_running:
        # as after a failed one: nothing in the store is taken for good, all of it is sent again
        failures = max(1, kept.value.snapshot_failures)
        noted = noted.having(snapshot_failures=failures, snapshot_due_from=LONG_AGO, drill_due_at=due_at)
        told += "; a new one is taken in full"
    writes: list[Write] = announce(app, noted, Kind.SNAPSHOT_DAMAGED, "snapshot_damaged", told, now)
    app.store.commit([kept.becomes(noted), *writes])
