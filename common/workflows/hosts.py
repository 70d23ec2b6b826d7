"""Hosts call us: the bootstrap token for a host token, the heartbeat for its orders."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from common import auth
from common.domain.host import (
    Boot,
    Booted,
    ClaimReport,
    Heartbeat,
    HostPhase,
    HostRecord,
    Pair,
    Reply,
    StorageCredentials,
    Wanted,
    digest_of,
    facts_of,
)
from common.domain.idle import is_idle
from common.domain.instance import Instance, Phase
from common.domain.liveness import DURABLE_PART, REFRESH_TIMES, Recorded
from common.domain.orders import is_settled, orders_of, wanted_of
from common.domain.rental import Rental
from common.domain.standby import pair_of
from common.errors import Exists, Missing, NotFound, ObjectStoreError, Stale, Unauthenticated
from common.ports import App, expiring
from common.records import Kept, World, dump, manifest_key_of, prefix_of, read
from common.workflows import liveness
from common.workflows.rentals import note_boot

ON_ITS_WAY_MAX_S = 20.0
"""A host gives a report up after so long; one that arrives later does not tell whether the host is idle now."""
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


@dataclass(frozen=True)
class Report:
    """A report that was taken in, and what the answer to it rests on."""

    beat: Heartbeat
    host: HostRecord
    rental: Rental
    instance: Kept[Instance] | None
    facts: str
    """The digest of what it says."""
    is_late: bool = False
    """Older than what is recorded: it says nothing about the host of now."""
    is_news: bool = False
    """Something changed that the lifecycle should look at now."""


def receive(app: App, beat: Heartbeat, token: str, now: datetime) -> tuple[Reply, Report | None]:
    """Record what the host says and answer with what the record wants of it.

    Returns the reply, and the report when it is news: then the lifecycle looks at it, and `answer` gives the reply.
    One that serves and says what it said before costs one read, of its instance: the token that it was given last
    time says what is recorded of it. Raises `Unauthenticated` and `NotFound` (no such rental: a host that hears it
    stops asking).
    """
    label, recorded = auth.recorded_of_host(token, secret=app.settings.jwt_secret, now=now)
    if label != beat.label:
        raise Unauthenticated("this token is for another rental")
    if beat.idle_since is not None and _was_long_on_its_way(app, beat, token, now):
        beat = beat.model_copy(update={"idle_since": None})
    instance = read(app, "instances", recorded.key, Instance) if recorded and recorded.key else None
    facts = digest_of(facts_of(beat))
    if recorded and instance and _says_the_same(app, beat, facts, recorded, instance.value, now):
        return _noted(app, beat, recorded, instance, now), None
    report = _taken_in(app, beat, facts, recorded, instance, now)
    return (answer(app, report, None, now), report if report.is_news else None)


def note_claim(app: App, label: str, claim: ClaimReport) -> None:
    """A claim that came faster than the next report. Late, it is of an epoch that is over, and nobody heeds it."""
    kept = read(app, "hosts", label, HostRecord)
    if kept is None or kept.value.claim == claim:
        return
    with contextlib.suppress(Stale, Missing):  # a report came first: it says the same, or knows better
        app.store.cas(kept.doc, dump(kept.value.model_copy(update={"claim": claim})))


def answer(app: App, report: Report, world: World | None, now: datetime) -> Reply:
    """The reply to a report that was taken in. `world` = the instance at rest after the lifecycle looked at the news.

    None of news: nobody did, or not to the end. The token then does not say that it is recorded, so that the host's
    next report is news again: who repeats itself needs no other retry.
    """
    beat, rental, instance = report.beat, report.rental, report.instance
    if world:
        instance, kept = world.instance, world.rental(rental.label) or read(app, "rentals", rental.label, Rental)
        rental = kept.value if kept else rental
    wanted, written_at = wanted_of(instance.value if instance else None, rental), report.host.last_seen_at
    is_heeded = not report.is_news or world is not None or rental.instance_key is None
    recorded = Recorded(rental.instance_key, beat.beat, report.facts, written_at, written_at)
    is_recorded = is_heeded and not report.is_late and bool(report.host.samples)
    trusted, host = recorded if is_recorded else None, report.host
    return _reply(app, rental.label, wanted, host.phase, instance, trusted, now, host)


def _was_long_on_its_way(app: App, beat: Heartbeat, token: str, now: datetime) -> bool:
    """It was idle when it said so. Its clock is not compared with ours: only how long it has had our token."""
    if beat.held_token_s is None:
        return False
    issued_at = auth.host_token_issued_at(token, secret=app.settings.jwt_secret, now=now)
    return (now - issued_at).total_seconds() - beat.held_token_s > ON_ITS_WAY_MAX_S


def _says_the_same(
    app: App, beat: Heartbeat, facts: str, recorded: Recorded, instance: Instance, now: datetime
) -> bool:
    """The next report in order of a host that serves, which was written down lately; one that is idle is looked at."""
    silent_after_s, is_next = app.settings.timing.silent_after_s, 0 < beat.beat == recorded.beat + 1
    durable_at = _durable_at(app, recorded, beat.label)
    return (
        is_next
        and beat.idle_since is None
        and is_settled(instance, beat.label, beat.phase)
        and (now - durable_at).total_seconds() <= silent_after_s * DURABLE_PART
        and (now - recorded.written_at).total_seconds() <= silent_after_s * REFRESH_TIMES
        and facts == recorded.facts
        and app.heard.has_room(beat.label)
    )


def _noted(app: App, beat: Heartbeat, recorded: Recorded, instance: Kept[Instance], now: datetime) -> Reply:
    """That it was heard is kept; what it serves is its instance's writer, and so lives (no read of its rental)."""
    liveness.note(app, beat.label, now, next_in_s=app.settings.timing.heartbeat_settled_s)
    renewed = replace(recorded, beat=beat.beat, durable_at=_durable_at(app, recorded, beat.label))
    wanted = Wanted.SERVE if instance.value.serves(beat.label) else Wanted.WAIT
    return _reply(app, beat.label, wanted, beat.phase, instance, renewed, now)


def _durable_at(app: App, recorded: Recorded, label: str) -> datetime:
    """This process may know better than the token, which it or another one gave a report ago."""
    return max(recorded.durable_at, app.heard.durable_at(label) or recorded.durable_at)


def _taken_in(
    app: App, beat: Heartbeat, facts: str, recorded: Recorded | None, instance: Kept[Instance] | None, now: datetime
) -> Report:
    """Compared with what is recorded, and written where that is worth it."""
    kept = read(app, "rentals", beat.label, Rental)
    if kept is None:
        raise NotFound(f"there is no rental {beat.label}")
    rental, found = kept.value, read(app, "hosts", beat.label, HostRecord)
    before = found.value if found else None
    if instance is None and rental.instance_key:
        instance = read(app, "instances", rental.instance_key, Instance)
    host = _newest(rental, beat, before, now)
    is_late = host is before
    has_first_samples = before is not None and bool(host.samples) and not before.samples
    says_new = before is None or facts_of(before) != facts_of(host) or has_first_samples
    is_repeated = not recorded or recorded.facts != facts
    is_news = not rental.settled and not is_late and (says_new or is_repeated)
    window_s = _idle_window_s(app, instance.value if instance else None)
    is_written = says_new or (before is not None and _is_worth_a_write(app, before, host, window_s))
    if is_written and not rental.settled:
        is_late = not _is_written(app, found, host)
    elif before:
        host = host.model_copy(update={"last_seen_at": before.last_seen_at})
    return Report(beat, host, rental, instance, facts, is_late, is_news and not is_late)


def _is_written(app: App, found: Kept[HostRecord] | None, host: HostRecord) -> bool:
    """Guarded, so that a write that comes late does not take a newer report back; False = another report came first."""
    try:
        if found:
            app.store.cas(found.doc, dump(host))
        else:
            app.store.create("hosts", host.label, dump(host))
    except (Stale, Exists, Missing):
        return False
    return True


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
        samples=beat.samples or (before.samples if before else {}),
        attest=beat.attest or (before.attest if before else None),
        claim=beat.claim,
        refused=beat.refused,
        door=beat.door or (before.door if before else None),
        tunnel_key=beat.tunnel_key or (before.tunnel_key if before else None),
    )


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


def _reply(
    app: App,
    label: str,
    wanted: Wanted,
    phase: HostPhase | None,
    instance: Kept[Instance] | None,
    recorded: Recorded | None,
    now: datetime,
    host: HostRecord | None = None,
) -> Reply:
    """Who was not recorded is asked to call again soon."""
    timing = app.settings.timing
    record = instance.value if instance else None
    every_s = (record and record.spec.snapshot_every_s) or timing.snapshot_every_s
    settled_s = timing.heartbeat_settled_s
    times = {"snapshot_every_s": every_s, "settled_s": settled_s}
    orders = orders_of(record, label, phase, **times, now=now, host=host) if record else []
    credentials = _credentials(app, record, now) if record and orders else None
    if credentials is None:
        orders = []  # nothing could come of them: the store has no credentials for it now
    has_time = not any(order.hurry for order in orders) and recorded is not None
    rests = has_time and record is not None and is_settled(record, label, phase)
    epoch = record.epoch if record else 0
    serves = record is not None and record.serves(label)
    if record and orders:
        place = {
            "instance_key": manifest_key_of(app, record).hex(),
            "prefix": prefix_of(record),
            "max_s": timing.prune_grace_s / 2,  # a prune counts on it
        }
        orders = [order.model_copy(update={"args": place | order.args}) for order in orders]
    return Reply(
        rev=instance.doc.rev if instance else 0,
        phase_wanted=wanted,
        epoch=epoch if serves else 0,
        fz=_nonce(record) if record and wanted is Wanted.FREEZE else None,
        orders=orders,
        pair=_pair(app, record, label, now) if record and record.standby else None,
        token=auth.host_token(
            label, epoch, secret=app.settings.jwt_secret, now=now, recorded=recorded, lifetime=_token_for(record, label)
        ),
        storage_credentials=credentials,
        idle_for_s=_idle_window_s(app, record),
        dead_man_s=timing.dead_man_s,
        next_in_s=settled_s if rests else timing.heartbeat_busy_s,
    )


def _token_for(instance: Instance | None, label: str) -> timedelta:
    is_standby = instance is not None and label == instance.standby
    return auth.STANDBY_TOKEN_FOR if is_standby else auth.HOST_TOKEN_FOR


def _nonce(instance: Instance) -> str | None:
    """Of a freeze; of a hand-over, the candidate's label is the nonce: it is never used again."""
    return instance.cand if instance.phase is Phase.HANDOVER else instance.fz


def _pair(app: App, instance: Instance, label: str, now: datetime) -> Pair | None:
    """A key for what the two say to each other, of this epoch; and one that both show to the user, of the instance."""
    deployment = app.deployment()
    key = deployment.derive("pair", f"{instance.key}.{instance.epoch}")
    shown = auth.ssh_private_key(deployment.derive("sshd", instance.key))
    return pair_of(instance, label, key=key, ssh_host_key=shown, now=now)


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
