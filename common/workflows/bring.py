"""What comes into a folder of the workspace beside the user's files: what only a fenced machine had, and what the user
wants back of an older snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from common.domain import bring as rules
from common.domain.bring import COPIED, NOT_COPIED, Beside
from common.domain.host import OrderResult
from common.domain.instance import Conflict, Copy, Instance, Phase, Want
from common.domain.outbox import Kind
from common.domain.snapshot import SnapshotRecord
from common.errors import IllegalMove, NotFound
from common.ports import App, Write
from common.records import Kept, World, event, manifest_key_of
from common.snapshots import engine
from common.workflows.outbox import announce

NAMES_TOLD = 3
"""Of those that a snapshot does not have."""


def request(
    app: App, world: World, wanted: Copy, snapshot: Kept[SnapshotRecord], now: datetime, also: Sequence[Write] = ()
) -> Instance:
    """The wish to have files of that snapshot; it may wait for the next GPU.

    Raises `IllegalMove`, and `Stale` also when a prune has given the snapshot up meanwhile: of its commit and this one,
    which guard each other's records, one fails.
    """
    instance = world.instance.value
    refuse(instance, snapshot.value)
    if len(instance.copies) >= rules.COPIES_MAX:
        raise IllegalMove(f"{instance.id} waits for {len(instance.copies)} copies already; ask again when one is there")
    wished = instance.having(copies=(*instance.copies, wanted))
    line = event(app, instance, "copy", f"asked for {wanted.what}", now)
    app.store.commit([world.instance.becomes(wished), snapshot.unchanged(), line, *also])
    return wished


def refuse(instance: Instance, snapshot: SnapshotRecord) -> None:
    """Raises `IllegalMove` when nothing of that snapshot can be had, or nowhere."""
    if instance.phase is Phase.ENDED or instance.want is Want.GONE:
        raise IllegalMove(f"{instance.id} is terminated; bring it back first: dumont instances restore {instance.id}")
    name = _name_of(snapshot)
    if snapshot.given_up_at is not None:
        raise IllegalMove(f"snapshot {name} was given up; see what is kept: dumont snapshots list {instance.id}")
    if snapshot.damaged is not None:
        raise IllegalMove(f"snapshot {name} is damaged; see the others: dumont snapshots list {instance.id}")


def require_paths(app: App, instance: Instance, snapshot: SnapshotRecord, paths: Iterable[str]) -> None:
    """Raises `NotFound` for what the snapshot does not have, and what a manifest that cannot be read raises."""
    if not (names := {path.encode(): path for path in paths}):
        return
    manifest = engine.load_manifest(app.objects, snapshot.manifest_key, manifest_key_of(app, instance))
    lacking = [names[name] for name in engine.lacking(manifest, names)]
    if lacking:
        more = f" and {len(lacking) - NAMES_TOLD} more" if len(lacking) > NAMES_TOLD else ""
        raise NotFound(f"snapshot {_name_of(snapshot)} has no {', '.join(lacking[:NAMES_TOLD])}{more}")


def copy_of(snapshot: SnapshotRecord, paths: Sequence[str], *, id: str) -> Copy:
    return Copy(id=id, snapshot=_name_of(snapshot), manifest_key=snapshot.manifest_key, paths=tuple(paths))


def note_brought(app: App, world: World, now: datetime) -> bool:
    """The writer's workspace has it, or could not be given it."""
    instance = world.instance.value
    found = rules.brought(instance, world.writer_host)
    if found is None:
        return False
    beside, result = found
    app.store.commit([world.instance.becomes(_noted(instance, beside, result, now)), *_told(app, instance, found, now)])
    return True


def _noted(instance: Instance, beside: Beside, result: OrderResult, now: datetime) -> Instance:
    noted = rules.noted(instance, beside, result)
    if len(noted.copies) == len(instance.copies):
        return noted
    return noted.having(prune_due_at=now)  # what it needed may be old by now


def _told(app: App, instance: Instance, ended: tuple[Beside, OrderResult], now: datetime) -> list[Write]:
    """Of a failure only when it was the last."""
    beside, result = ended
    if not result.ok and not rules.is_last_try(beside):
        return []
    if isinstance(beside, Conflict):
        return announce(app, instance, Kind.CONFLICT, "conflict", _of_conflict(beside, result), now)
    line = COPIED if result.ok else NOT_COPIED
    return announce(app, instance, Kind.COPY, line, _of_copy(beside, result), now, line_id=beside.id)


def _of_conflict(conflict: Conflict, result: OrderResult) -> str:
    folder = f"{rules.folder_of(conflict)} of the workspace"
    if result.ok:
        return f"{conflict.files} files that only an earlier machine had are in {folder}"
    return f"{folder} could not be filled: {_why(result)}; it is kept for the next machine"


def _of_copy(copy: Copy, result: OrderResult) -> str:
    folder = f"{rules.folder_of(copy)} of the workspace"
    return f"{folder} has {copy.what}" if result.ok else f"{folder} could not be given {copy.what}: {_why(result)}"


def _why(result: OrderResult) -> str:
    return result.detail or str(result.error)


def dropped(app: App, instance: Instance, now: datetime) -> list[Write]:
    """For the commit that ends the instance: what it still waits for never comes."""
    return [
        event(app, instance, NOT_COPIED, f"never brought, for it is terminated: {copy.what}", now, id=copy.id)
        for copy in instance.copies
    ]


def _name_of(snapshot: SnapshotRecord) -> str:
    return f"{snapshot.version.epoch}-{snapshot.version.seq}"
