"""Snapshots become the pointer only when verified; a frozen, verified instance lets its machine go in that commit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from common.domain import conflict
from common.domain.backoff import pause_s
from common.domain.host import HostRecord, SnapshotReport
from common.domain.instance import Failure, Instance, Phase, Pointer, Want
from common.domain.orders import failed_snapshot, snapshot_id
from common.domain.outbox import Kind
from common.domain.reliability import Outcome
from common.domain.rental import RentalState
from common.domain.snapshot import PACKS_NAMED_MAX, SnapshotRecord
from common.domain.verdict import Act, Verdict, verdict
from common.domain.version import Version
from common.errors import IllegalMove, ObjectMissing, SnapshotError
from common.ports import App, Create, Write
from common.records import World, dump, event
from common.workflows import conflicts
from common.workflows.history import End, ends, retire
from common.workflows.outbox import announce, tell
from common.workflows.proof import verified

IDLE = "idle"
"""First word of the reason of a hibernation that nobody asked for."""
SNAPSHOT_RETRY_S = 10.0
SNAPSHOT_RETRY_MAX_S = 300.0
SNAPSHOT_FAILURES_MAX = 6


def request(app: App, world: World, *, reason: str, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """The wish to hibernate; raises `IllegalMove` when it is ending."""
    instance = world.instance.value
    if instance.want is Want.GONE:
        raise IllegalMove(f"{instance.id} is being terminated")
    wished = instance.having(want=Want.DOWN, reason=reason, failure=None, snapshot_failures=0)
    app.store.commit([world.instance.becomes(wished), event(app, instance, "hibernate", reason, now), *also])
    return wished


def snooze(
    app: App, world: World, *, minutes: int, now: datetime, kind: str = "snooze", also: Sequence[Write] = ()
) -> Instance:  # fmt: skip
    """A lease that keeps it awake, however idle it is; it also calls off a hibernation that only idleness began.

    The newest lease counts; one of 0 minutes ends it. `kind` = what the user called it (`snooze`, `keep_alive`).
    Raises `IllegalMove` when it does not run and nobody wants it to.
    """
    instance = world.instance.value
    if instance.want is not Want.UP and not _is_going_down_idle(instance):
        raise IllegalMove(f"{instance.id} is not running; wake it instead")
    if minutes == 0:
        ended = instance.having(awake_until=None)
        app.store.commit([world.instance.becomes(ended), event(app, instance, kind, "the lease is over", now), *also])
        return ended
    reason = kind if instance.want is Want.DOWN else instance.reason
    until = now + timedelta(minutes=minutes)
    awake = instance.having(awake_until=until, want=Want.UP, reason=reason)
    text = f"kept awake until {until:%Y-%m-%d %H:%M} UTC"
    app.store.commit([world.instance.becomes(awake), event(app, instance, kind, text, now), *also])
    return awake


def _is_going_down_idle(instance: Instance) -> bool:
    is_down_wanted = instance.want is Want.DOWN and instance.phase in (Phase.UP, Phase.FREEZING)
    return is_down_wanted and instance.reason.startswith(IDLE)


def judged(app: App, instance: Instance, host: HostRecord | None, now: datetime) -> Verdict:
    """What is to become of it, and why. `host` = what the present writer's host last said."""
    timing = app.settings.timing
    return verdict(
        instance, host, default_idle_for_s=timing.idle_for_s, silent_after_s=timing.silent_after_s, now=now
    )  # fmt: skip


def wants_warning(app: App, instance: Instance, host: HostRecord, now: datetime) -> bool:
    """Idle for so long that the user should hear what is about to happen, and has not heard yet."""
    return judged(app, instance, host, now).act is Act.WARN


def warn(app: App, world: World, host: HostRecord, now: datetime) -> None:
    """The first of two stages: tell, and note that it was told."""
    instance = world.instance.value
    found = judged(app, instance, host, now)
    assert found.idle_since
    assert found.hibernates_at
    idle_s, left_s = (now - found.idle_since).total_seconds(), (found.hibernates_at - now).total_seconds()
    text = f"idle for {idle_s:.0f} s; hibernates in about {max(left_s, 0):.0f} s unless it is used or snoozed"
    told = announce(app, instance, Kind.IDLE_WARNING, "idle", text, now)
    app.store.commit([world.instance.becomes(instance.having(idle_warned_at=now)), *told])


def wants_note(app: App, instance: Instance, host: HostRecord, now: datetime) -> bool:
    """The policy `shadow`, and any other would hibernate it now."""
    return judged(app, instance, host, now).act is Act.NOTE


def note(app: App, world: World, host: HostRecord, now: datetime) -> None:
    """In the policy `shadow`: once per spell of idleness, in its story and the log; nobody is told, nothing is done."""
    instance = world.instance.value
    assert host.idle_since
    text = f"would be hibernated now: idle for {(now - host.idle_since).total_seconds():.0f} s"
    noted = world.instance.becomes(instance.having(would_hibernate_at=now))
    app.store.commit([noted, event(app, instance, "shadow", text, now)])
    app.log("would_hibernate", key=instance.key, idle_since=host.idle_since)


def wants_hibernation(app: App, instance: Instance, host: HostRecord, now: datetime) -> bool:
    """Idle for its whole window and its lease, as the present writer has just reported, and warned of in time."""
    return judged(app, instance, host, now).act is Act.HIBERNATE


def freeze(app: App, world: World, now: datetime) -> bool:
    """up|standby -> freezing, with a nonce that only this freeze can answer.

    On the standby the GPUs to go back to are let go: they bill, however long the last snapshot takes.
    """
    instance = world.instance.value
    if instance.want is Want.UP or not instance.is_served:
        return False
    frozen = instance.to(Phase.FREEZING, at=now).having(
        fz=app.ids(), snapshot_not_before=None, cand=None, race=(), hand_back_at=None
    )
    sought = [kept for label, kept in world.rentals.items() if label in (instance.cand, *instance.race)]
    writes = retire(app, ends(sought, Outcome.CANCELLED, "it is no longer wanted up"), now)
    told = event(app, instance, "freeze", f"freezing: {instance.reason}", now)
    app.store.commit([*writes, world.instance.becomes(frozen), told])
    return True


def unfreeze(app: App, world: World, now: datetime) -> bool:
    """freezing -> up, when the user wants it after all: the nonce is dead."""
    instance = world.instance.value
    if instance.want is not Want.UP:
        return False
    up = instance.to(instance.served_phase, at=now).having(fz=None)
    app.store.commit([world.instance.becomes(up), event(app, instance, "unfreeze", "wanted again", now)])
    return True


def look_again(app: App, world: World, now: datetime) -> bool:
    """freezing -> up, when a hibernation that only idleness began finds a sign of life before its machine is gone."""
    instance, host = world.instance.value, world.writer_host
    if host is None or not host.vetoes or host.last_seen_at < instance.at or not _is_going_down_idle(instance):
        return False
    up = instance.to(instance.served_phase, at=now).having(fz=None, want=Want.UP, reason="in use", idle_warned_at=None)
    text = f"not idle after all: {', '.join(host.vetoes)}"
    app.store.commit([world.instance.becomes(up), event(app, instance, "in_use", text, now)])
    return True


def accept_snapshot(app: App, world: World, now: datetime) -> bool:
    """Verify the writer's newest report; then ONE commit moves the pointer and, after a freeze, retires the machine."""
    instance, host = world.instance.value, world.writer_host
    report = host.progress.snapshot if host else None
    if report is None or report.manifest_key == instance.snapshot_judged or not _may_count(instance, report):
        return False
    if is_final(instance, report) and conflicts.is_awaited(app, world, now):
        return False  # its commit lets the held machine go
    try:
        found = verified(app, instance, report.manifest_key, Version(epoch=report.epoch, seq=report.seq))
    except (SnapshotError, ObjectMissing) as error:
        # the store says definitely what is wrong; an answer that failed is another error, and ends the step
        return _refuse(app, world, report, f"{error.code}: {error}", now)
    record = SnapshotRecord(
        id=f"{instance.key}.{report.epoch}-{report.seq}",
        account=instance.account,
        instance_id=instance.id,
        instance_key=instance.key,
        manifest_key=report.manifest_key,
        version=Version(epoch=report.epoch, seq=report.seq),
        taken_epoch=report.epoch,
        taken_at=now,
        files=found.files,
        bytes=found.bytes,
        stored_bytes=report.stored_bytes,
        wasted_bytes=found.wasted_bytes,
        new_packs=list(found.packs_read_back),
        packs=list(found.packs) if len(found.packs) <= PACKS_NAMED_MAX else None,
        proof=found.proof,
    )
    _move_pointer(app, world, report, record, now, wants_repacking=found.wants_repacking)
    return True


def _may_count(instance: Instance, report: SnapshotReport) -> bool:
    """Rule P2: taken in the record's epoch by its writer, and newer than the pointer. Others are noise, not errors."""
    if report.epoch != instance.epoch or instance.started_epoch != instance.epoch:
        return False
    version = Version(epoch=report.epoch, seq=report.seq)
    pointer = instance.pointer
    return pointer is None or (version >= pointer.version and (report.epoch, version) > pointer.order)


def _refuse(app: App, world: World, report: SnapshotReport, why: str, now: datetime) -> bool:
    failed = _failed(world.instance.value, why, now).having(snapshot_judged=report.manifest_key)
    app.store.commit([world.instance.becomes(failed), event(app, world.instance.value, "snapshot_refused", why, now)])
    return True


def _move_pointer(
    app: App, world: World, report: SnapshotReport, record: SnapshotRecord, now: datetime, *, wants_repacking: bool
) -> None:
    instance, is_awaited = world.instance.value, conflicts.is_awaited(app, world, now)
    pointer = Pointer(
        id=record.id,
        manifest_key=record.manifest_key,
        version=record.version,
        taken_epoch=record.taken_epoch,
        at=now,
        files=record.files,
        bytes=record.bytes,
        wants_repacking=wants_repacking,
    )
    moved = instance.having(
        pointer=pointer,
        snapshot_judged=report.manifest_key,
        snapshot_attempt=instance.snapshot_attempt + 1,
        snapshot_due_from=now,
        snapshot_failures=0,
        snapshot_not_before=None,
        prune_due_at=instance.prune_due_at or now + timedelta(seconds=app.settings.timing.prune_every_s),
        drill_due_at=instance.drill_due_at or now,
        held=instance.held if is_awaited else None,
        restored_older=None,
        conflicts=conflict.not_in(instance),
    )
    # the pointer covers the role change (rule P3): machines of earlier epochs are no longer needed
    older = [k for k in world.rentals.values() if k.value.state is RentalState.HELD or k.value.label == instance.held]
    older = [kept for kept in older if not is_awaited or kept.value.label != instance.held]
    ended = [End(kept, Outcome.SILENT, "covered by a newer snapshot") for kept in older]
    if is_final(instance, report):
        moved = _without_machines(moved, now)
        ended = [End(kept, Outcome.SERVED, "hibernated") for kept in world.rentals.values()]
    writes: list[Write] = [
        *retire(app, ended, now),
        world.instance.becomes(moved),
        Create("snapshots", record.id, dump(record)),
    ]
    if is_final(instance, report):
        writes.append(event(app, instance, "released", "the machine is released: its last snapshot is verified", now))
        body = {"instance_id": instance.id, "name": instance.name, "text": f"hibernated: {instance.reason}"}
        writes += tell(app, instance.account, Kind.HIBERNATED, body, now)
    app.store.commit(writes)


def _without_machines(instance: Instance, now: datetime) -> Instance:
    """down: no machine writes, and none is on its way to. The standby keeps the address, and mirrors nobody."""
    down = instance.to(Phase.DOWN, at=now)
    return down.having(writer=None, mirror=None, cand=None, race=(), held=None, epoch=instance.epoch + 1, fz=None)


def is_final(instance: Instance, report: SnapshotReport) -> bool:
    """Does this report answer the freeze that stands now? Never assumed from elapsed time."""
    frozen = instance.phase is Phase.FREEZING and instance.fz is not None
    return frozen and report.fz == instance.fz and report.order == snapshot_id(instance)


def retry_failed(app: App, world: World, now: datetime) -> bool:
    """The engine failed on the host, which tries an order only once: another attempt."""
    instance = world.instance.value
    result = failed_snapshot(instance, world.writer_host)
    if result is None:
        return False
    why = f"snapshot failed {instance.snapshot_failures + 1} x: {result.error}: {result.detail}"
    failed = _failed(instance, why, now)
    app.store.commit([world.instance.becomes(failed), event(app, instance, "snapshot_failed", why, now)])
    return True


def _failed(instance: Instance, why: str, now: datetime) -> Instance:
    """Another attempt, later each time. Who only wanted to stop paying gets the machine back.

    A hibernation that fails SNAPSHOT_FAILURES_MAX times is called off, so that the user can work and mend it; a
    termination is not: only the user can say that what no snapshot holds may go.
    """
    failures = instance.snapshot_failures + 1
    again = pause_s(SNAPSHOT_RETRY_S, failures - 1, max_s=SNAPSHOT_RETRY_MAX_S)
    failed = instance.having(
        snapshot_attempt=instance.snapshot_attempt + 1,
        snapshot_failures=failures,
        snapshot_not_before=now + timedelta(seconds=again),
    )
    if instance.phase is Phase.FREEZING and instance.want is Want.DOWN and failures >= SNAPSHOT_FAILURES_MAX:
        failure = Failure(code="snapshot_failed", detail=why)
        served = failed.to(instance.served_phase, at=now)
        return served.having(fz=None, want=Want.UP, failure=failure, snapshot_due_from=now)
    return failed


def give_up_freezing(app: App, world: World, now: datetime) -> bool:
    """freezing -> down without a last snapshot, only when the host was silent for the whole dead man's time.

    What its mirror took was promised: that one is asked to take over instead (`mirror.call_on`), and has the time it
    needs. So has a standby that writes: its machine is kept, and whatever it has, it still has when it answers.
    """
    instance, host = world.instance.value, world.writer_host
    limit = timedelta(seconds=app.settings.timing.dead_man_s)
    if now - instance.at < limit or (host and host.silent_for_s(now) < limit.total_seconds()):
        return False
    if world.is_guarded():
        return False
    down = _without_machines(instance, now)
    why = f"the host was silent for {limit}; the newest verified snapshot stands"
    writes = retire(app, [End(world.writer, Outcome.SILENT, why)] if world.writer else [], now)
    writes += world.still_silent()
    app.store.commit([*writes, world.instance.becomes(down), event(app, instance, "down", why, now)])
    return True
