"""Hosts call us: the bootstrap token for a host token, the heartbeat for its orders."""

from __future__ import annotations

from datetime import datetime, timedelta

from common import auth
from common.domain.host import Boot, Booted, Heartbeat, HostPhase, HostRecord, Reply, StorageCredentials, Wanted
from common.domain.idle import is_idle
from common.domain.instance import Instance
from common.domain.orders import is_busy, orders_of, wanted_of
from common.domain.rental import Rental
from common.errors import Exists, NotFound, ObjectStoreError, Unauthenticated
from common.ports import App, expiring
from common.records import Kept, dump, manifest_key_of, prefix_of, read
from common.workflows.rentals import note_boot

STORAGE_CREDENTIALS_FOR_S = 12 * 3600
"""As long as a snapshot may take (`take.MAX_SECONDS`): s5cmd cannot renew them on the way."""
SEEN_WRITES = 6
"""Of `last_seen_at` within `silent_after_s`, at most; a report that says nothing new is not written more often."""


def boot(app: App, call: Boot, token: str, now: datetime) -> tuple[Booted | None, Rental | None]:
    """The first call of a machine. The bootstrap token is used up by one `boot_id`; raises `Unauthenticated`."""
    label = auth.label_of_bootstrap(token, secret=app.settings.jwt_secret, now=now)
    if label != call.label:
        raise Unauthenticated("this bootstrap token is for another rental")
    if not call.failed:
        _use_up(app, label, call.boot_id, now)
    rental = note_boot(app, label, call.up_for_s, call.failed, now)
    if rental is None:
        raise NotFound(f"{label} is not a live rental")
    if call.failed:
        return None, rental
    return Booted(token=auth.host_token(label, 0, secret=app.settings.jwt_secret, now=now)), rental


def _use_up(app: App, label: str, boot_id: str, now: datetime) -> None:
    """One use; the same machine may repeat its call when the answer was lost."""
    try:
        app.store.create("boots", label, expiring("boots", {"boot_id": boot_id, "at": now}, now))
    except Exists:
        doc = app.store.get("boots", label)
        if doc is None or doc.data["boot_id"] != boot_id:
            raise Unauthenticated("this bootstrap token was used before") from None


def receive(app: App, beat: Heartbeat, token: str, now: datetime) -> tuple[Reply, Rental, bool]:
    """Record what the host says and answer with what the record wants of it.

    Returns the reply, the rental, and whether something changed that the lifecycle should look at now.
    Raises `Unauthenticated` and `NotFound` (no such rental: a host that hears it stops asking).
    """
    label = auth.label_of_host(token, secret=app.settings.jwt_secret, now=now)
    if label != beat.label:
        raise Unauthenticated("this token is for another rental")
    kept = read(app, "rentals", label, Rental)
    if kept is None:
        raise NotFound(f"there is no rental {label}")
    rental, before = kept.value, read(app, "hosts", label, HostRecord)
    record = _newest(rental, beat, before.value if before else None, now)
    instance = read(app, "instances", rental.instance_key, Instance) if rental.instance_key else None
    window_s = _idle_window_s(app, instance.value if instance else None)
    changed = not rental.settled and (before is None or _says_something_new(before.value, record))
    if changed:
        record = record.model_copy(update={"news_at": now})
    if changed or (before and not rental.settled and _is_worth_a_write(app, before.value, record, window_s)):
        app.store.put("hosts", label, dump(record))
    return _reply(app, rental, record, instance, now), rental, changed


def _newest(rental: Rental, beat: Heartbeat, before: HostRecord | None, now: datetime) -> HostRecord:
    """A report that was delayed or delivered twice says nothing about the host of now: what was known stands."""
    is_old = before is not None and 0 < beat.beat <= before.beat
    return before if before is not None and is_old else _record(rental, beat, before, now)


def _record(rental: Rental, beat: Heartbeat, before: HostRecord | None, now: datetime) -> HostRecord:
    idle_for = beat.idle_for()
    return HostRecord(
        label=rental.label,
        account=rental.account,
        instance_id=rental.instance_id,
        instance_key=rental.instance_key,
        first_seen_at=(before and before.first_seen_at) or now,
        last_seen_at=now,
        news_at=before.news_at if before else None,
        beat=beat.beat,
        phase=beat.phase,
        epoch=beat.epoch,
        seq=beat.seq,
        fz=beat.fz,
        idle_since=now - idle_for if idle_for is not None and rental.is_live else None,
        vetoes=beat.vetoes,
        disk=beat.disk,
        sync=beat.sync,
        progress=beat.progress,
        samples=beat.samples,
        attest=beat.attest or (before.attest if before else None),
    )


def _says_something_new(before: HostRecord, after: HostRecord) -> bool:
    """Facts that a decision depends on; a sequence number or a sample alone is none."""

    def facts(record: HostRecord) -> tuple[object, ...]:
        progress = record.progress
        is_idle = record.idle_since is not None
        said = (record.phase, record.epoch, record.fz, is_idle, progress.last, progress.snapshot, record.attest)
        return *said, tuple(record.vetoes)

    return facts(before) != facts(after)


def _is_worth_a_write(app: App, before: HostRecord, after: HostRecord, window_s: float) -> bool:
    """Written several times within `silent_after_s`, so that silence is told from an unchanged host.

    And when its window of idleness is over, which it tells at once: the job would pay for another round otherwise.
    """
    every_s = app.settings.timing.silent_after_s / SEEN_WRITES
    was_over, is_over = (
        is_idle(record.idle_since, idle_for_s=window_s, now=record.last_seen_at) for record in (before, after)
    )
    return (is_over and not was_over) or (after.last_seen_at - before.last_seen_at).total_seconds() >= every_s


def _idle_window_s(app: App, instance: Instance | None) -> float:
    return instance.idle_window_s(app.settings.timing.idle_for_s) if instance else app.settings.timing.idle_for_s


def _reply(app: App, rental: Rental, host: HostRecord, instance: Kept[Instance] | None, now: datetime) -> Reply:
    timing = app.settings.timing
    record = instance.value if instance else None
    wanted = wanted_of(record, rental)
    every_s = (record and record.spec.snapshot_every_s) or timing.snapshot_every_s
    orders = orders_of(record, rental, host, snapshot_every_s=every_s, now=now) if record else []
    busy = record is None or is_busy(record, rental, host, orders)
    credentials = _credentials(app, record, now) if record and orders else None
    if credentials is None:
        orders = []  # nothing could come of them: the store has no credentials for it now
    epoch = record.epoch if record else 0
    serves = record is not None and record.serves(rental.label)
    if record and orders:
        place = {
            "instance_key": manifest_key_of(app, record).hex(),
            "prefix": prefix_of(record),
            "max_s": timing.prune_grace_s / 2,  # a prune counts on it
        }
        orders = [order.model_copy(update={"args": order.args | place}) for order in orders]
    return Reply(
        rev=instance.doc.rev if instance else 0,
        phase_wanted=wanted,
        epoch=epoch if serves else 0,
        fz=record.fz if record and wanted is Wanted.FREEZE else None,
        orders=orders,
        token=auth.host_token(rental.label, epoch, secret=app.settings.jwt_secret, now=now),
        storage_credentials=credentials,
        idle_for_s=_idle_window_s(app, record),
        dead_man_s=timing.dead_man_s,
        next_in_s=timing.heartbeat_busy_s if busy or host.phase is HostPhase.STOPPED else timing.heartbeat_settled_s,
    )


def _credentials(app: App, instance: Instance, now: datetime) -> StorageCredentials | None:
    """For this instance's prefix, and long enough for a snapshot; None = the vendor gives none at the moment."""
    settings, grant = app.settings, None
    if app.storage_access:
        try:
            grant = app.storage_access.grant(prefix_of(instance), for_s=STORAGE_CREDENTIALS_FOR_S, now=now)
        except ObjectStoreError as error:
            app.log("no_storage_credentials", instance=instance.id, error=str(error))
            return None
    return StorageCredentials(
        endpoint=settings.host_storage_endpoint,
        region=settings.storage_region,
        bucket=settings.bucket,
        prefix=prefix_of(instance),
        access_key=grant.access_key if grant else settings.storage_key_id,
        secret_key=grant.secret_key if grant else settings.storage_application_key,
        session_token=grant.session_token if grant else None,
        expires_at=grant.expires_at if grant else now + timedelta(seconds=STORAGE_CREDENTIALS_FOR_S),
    )
