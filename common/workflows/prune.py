"""Old snapshots go, and what no snapshot needs any more: decided here, never by a host.

What is given up is first written down, in a commit that stands only on the pointer it was decided by; then the engine
deletes manifests, and packs after a grace; the records go last. A run that is killed anywhere, or that meets another
one, only leaves work for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.domain.conflict import epochs_being_saved
from common.domain.host import HostRecord
from common.domain.instance import Instance, Phase
from common.domain.retention import may_still_count, outdated
from common.domain.snapshot import PACKS_NAMED_MAX, SnapshotRecord
from common.domain.spec import SnapshotTerms
from common.domain.version import Version
from common.errors import DumontError, ObjectMissing, SnapshotError, SnapshotRefused, StoreError
from common.ports import App, Delete, Where, Write, every
from common.records import (
    Kept,
    World,
    event,
    manifest_key_of,
    prefix_of,
    read,
    record_of,
    with_data_key,
    wrapping_keys,
)
from common.snapshots import engine

RUN_S = 400.0
"""No further instance is begun after that; the others are due first at the next run."""
RECORDS_PER_COMMIT = 90


@dataclass
class Summary:
    """What one run did."""

    instances: int = 0
    failed: int = 0
    snapshots: int = 0
    packs: int = 0
    bytes_freed: int = 0
    waiting: int = 0
    """Packs that nobody needs, and whose grace is not over."""
    rewrapped: int = 0
    """Data keys."""


def run(app: App, now: datetime) -> Summary:
    """Every instance that is due, the longest waiting first. One that fails keeps the others from nothing."""
    summary = Summary(rewrapped=rewrap(app))
    keys = [doc.id for doc in every(app.store, "instances", [("prune_due_at", "<=", now)])]
    for key in keys:
        if (app.clock() - now).total_seconds() > RUN_S:
            break
        summary.instances += 1
        try:
            _count(summary, prune_instance(app, key, app.clock()))
        except DumontError as error:
            summary.failed += 1
            app.log("prune_failed", key=key, error=f"{error.code}: {error}")
            _postpone(app, key, error)
    return summary


def rewrap(app: App) -> int:
    """Data keys under a secret of before are wrapped by the newest one: nothing is encrypted anew. How many were."""
    _, *old = wrapping_keys(app)
    done = 0
    for id in old:
        for doc in every(app.store, "instances", [("wrapped_by", "==", id)]):
            kept = Kept(doc, record_of(doc, Instance))
            try:
                again = with_data_key(app, kept.value, manifest_key_of(app, kept.value))
                app.store.commit([kept.becomes(again)])
                done += 1
            except DumontError as error:
                app.log("not_rewrapped", key=kept.value.key, error=str(error))  # the next run tries it again
    return done


def change_terms(app: App, world: World, changes: SnapshotTerms, now: datetime) -> Instance:
    """The fields that `changes` has set; they count from the next order and the next run on. Raises `Stale`."""
    instance = world.instance.value
    given = {name: getattr(changes, name) for name in changes.model_fields_set}
    due_at = now if "keep" in given and instance.pointer else instance.prune_due_at
    changed = instance.having(spec=instance.spec.model_copy(update=given), prune_due_at=due_at)
    text = ", ".join(f"{name} = {value}" for name, value in sorted(given.items())) or "nothing"
    app.store.commit([world.instance.becomes(changed), event(app, instance, "terms", f"changed: {text}", now)])
    return changed


def prune_instance(app: App, key: str, now: datetime) -> engine.Pruned | None:
    """None = it has ended: a purge removes all of it.

    Raises `SnapshotError` when it cannot be known what a kept snapshot needs, and what the stores raise; then nothing
    was removed that anybody needs.
    """
    kept = read(app, "instances", key, Instance)
    if kept is None or kept.value.phase is Phase.ENDED:
        _note(app, key, kept.value if kept else None, None, now)
        return None
    records = _give_up(app, kept, _records(app, key), now)
    pruned = engine.prune(
        app.objects,
        prefix=prefix_of(kept.value),
        needs=_needs_of(app, kept.value, records),
        keep=_keep_of(app, kept.value, records),
        now=now,
        grace=timedelta(seconds=app.settings.timing.prune_grace_s),
    )
    _forget(app, records)
    _note(app, key, kept.value, pruned, now)
    return pruned


def _records(app: App, key: str) -> list[Kept[SnapshotRecord]]:
    """Newest first."""
    where: list[Where] = [("instance_key", "==", key)]
    docs = every(app.store, "snapshots", where, order_by="taken_at", newest_first=True)
    return [Kept(doc, record_of(doc, SnapshotRecord)) for doc in docs]


def _give_up(
    app: App, instance: Kept[Instance], records: list[Kept[SnapshotRecord]], now: datetime
) -> list[Kept[SnapshotRecord]]:
    """The records as they are after each outdated one was given up; raises `Stale` when the pointer moved meanwhile.

    A fall-back to an older snapshot, or a wish for its files, guards that record, and this commit guards the instance:
    one of the two fails.
    """
    in_use = _in_use(instance.value)
    standing = [kept.value for kept in records if kept.value.given_up_at is None]
    keep = instance.value.spec.keep or app.settings.keep
    old = outdated(standing, in_use=in_use, retention=keep, now=now)
    for batch in _batches([kept for kept in records if kept.value.id in old]):
        given_up = [kept.becomes(kept.value.model_copy(update={"given_up_at": now})) for kept in batch]
        app.store.commit([instance.unchanged(), *given_up])
    return _records(app, instance.value.key) if old else records


def _in_use(instance: Instance) -> set[str]:
    """What the next machine gets, what a user may still want of a damaged one, and what files are to come from.

    A copy is asked for in a commit that guards its record (`bring.request`), as a fall-back's is.
    """
    pointer, older = instance.pointer, instance.restored_older
    copied = [f"{instance.key}.{copy.snapshot}" for copy in instance.copies]
    return {id for id in (pointer and pointer.id, older and older.damaged, *copied) if id}


def _keep_of(
    app: App, instance: Instance, records: list[Kept[SnapshotRecord]]
) -> Callable[[list[str]], set[str]]:  # fmt: skip
    """Every snapshot that stands, listed or not; and of those without a record the ones that may yet get one.

    `instance` was read before the records, and they before the listing: what came since is newer than its pointer.
    """
    standing = {kept.value.manifest_key for kept in records if kept.value.given_up_at is None}
    given_up = {kept.value.manifest_key for kept in records} - standing
    pointer = instance.pointer.order if instance.pointer else None

    def in_flight(manifest: str, saving: set[int]) -> bool:
        version = _version_of(manifest)
        if version is None:
            return False
        return version.epoch in saving or may_still_count(version, epoch=instance.epoch, pointer=pointer)

    def keep(listed: list[str]) -> set[str]:
        saving, apart = _apart(app, instance)
        return standing | apart | {name for name in listed if name not in given_up and in_flight(name, saving)}

    return keep


def _apart(app: App, seen: Instance) -> tuple[set[int], set[str]]:
    """Epochs of which a fenced machine may have saved something that is not judged yet, and manifests of what is kept.

    Read after the listing, the machines first: what one of them had saved by then it says, or the record names it.
    """
    labels = [label for label in (seen.held, seen.standby) if label]
    hosts = [host.value for label in labels if (host := read(app, "hosts", label, HostRecord))]
    kept = read(app, "instances", seen.key, Instance)
    newest = kept.value if kept else seen
    saving = {epoch for instance in (seen, newest) for epoch in epochs_being_saved(instance, hosts)}
    return saving, {each.manifest_key for instance in (seen, newest) for each in instance.conflicts}


def _version_of(manifest: str) -> Version | None:
    """As its name says; None = no name of ours, which nothing can ever point to."""
    named = engine.MANIFEST_KEY.fullmatch(manifest)
    return Version(epoch=int(named["epoch"]), seq=int(named["seq"])) if named else None


def _needs_of(
    app: App, instance: Instance, records: list[Kept[SnapshotRecord]]
) -> Callable[[str], Iterable[str]]:  # fmt: skip
    """What a record remembers need not be read again: an hour's look at 40 manifests would cost their egress."""
    known = {kept.value.manifest_key: kept.value for kept in records}

    def needs(manifest: str) -> Iterable[str]:
        record = known.get(manifest)
        if record and record.packs is not None:
            return record.packs
        try:
            return engine.load_manifest(app.objects, manifest, manifest_key_of(app, instance)).packs
        except (ObjectMissing, SnapshotRefused):
            if record is None or record.given_up_at:
                return ()  # it will never be a snapshot, for its verification would say the same
            raise

    return needs


def _forget(app: App, records: list[Kept[SnapshotRecord]]) -> None:
    """Records whose objects are gone. What they proved is proven still, where a later snapshot needs it."""
    gone = [kept for kept in records if kept.value.given_up_at]
    newest = next((kept for kept in records if kept.value.given_up_at is None), None)
    for batch in _batches(gone):
        writes: list[Write] = [Delete(kept.doc) for kept in batch]
        if newest:
            heir = _inheriting(newest, [kept.value for kept in batch], records)
            app.store.commit([*writes, newest.becomes(heir)])
            newest = read(app, "snapshots", heir.id, SnapshotRecord)
        else:
            app.store.commit(writes)


def _batches(records: list[Kept[SnapshotRecord]]) -> Iterator[list[Kept[SnapshotRecord]]]:
    return (records[first : first + RECORDS_PER_COMMIT] for first in range(0, len(records), RECORDS_PER_COMMIT))


def _inheriting(
    heir: Kept[SnapshotRecord], gone: list[SnapshotRecord], records: list[Kept[SnapshotRecord]]
) -> SnapshotRecord:  # fmt: skip
    standing = [kept.value.packs for kept in records if kept.value.given_up_at is None]
    needed = {pack for packs in standing for pack in packs or ()}
    proven = [pack for record in gone for pack in record.new_packs if pack in needed]
    new_packs = list(dict.fromkeys([*heir.value.new_packs, *proven]))
    # beyond what a record holds they are proven anew by the next snapshot
    return heir.value.model_copy(update={"new_packs": new_packs[:PACKS_NAMED_MAX]})


def _note(app: App, key: str, seen: Instance | None, pruned: engine.Pruned | None, now: datetime) -> None:
    """When the next look is due, a line of the story if anything went, and the totals."""
    kept = read(app, "instances", key, Instance)
    if kept is None:
        return
    due_at = pruned.next_at if pruned else None
    if pruned and seen and kept.value.pointer != seen.pointer:
        due_at = now + timedelta(seconds=app.settings.timing.prune_every_s)  # a snapshot came meanwhile
    writes: list[Write] = [kept.becomes(kept.value.having(prune_due_at=due_at))]
    if pruned and (pruned.manifests or pruned.packs):
        text = f"{len(pruned.manifests)} old snapshots removed, {pruned.bytes} bytes freed"
        writes.append(event(app, kept.value, "pruned", text, now))
        counts = {"snapshots": len(pruned.manifests), "packs": len(pruned.packs), "bytes": pruned.bytes}
        app.store.increment("pruned", key, counts)
    app.store.commit(writes)


def _postpone(app: App, key: str, error: DumontError) -> None:
    """Others come first; where the store says what is wrong, the story has a line."""
    try:
        kept, now = read(app, "instances", key, Instance), app.clock()
        if kept is None or isinstance(error, StoreError):
            return
        later = kept.value.having(prune_due_at=now + timedelta(seconds=app.settings.timing.prune_every_s))
        writes: list[Write] = [kept.becomes(later)]
        if isinstance(error, SnapshotError):
            writes.append(event(app, kept.value, "prune_failed", f"nothing was removed: {error}", now))
        app.store.commit(writes)
    except DumontError as again:
        app.log("prune_not_postponed", key=key, error=str(again))


def _count(summary: Summary, pruned: engine.Pruned | None) -> None:
    if pruned:
        summary.snapshots += len(pruned.manifests)
        summary.packs += len(pruned.packs)
        summary.bytes_freed += pruned.bytes
        summary.waiting += pruned.waiting
