"""From a wish to a machine: search, record the attempts, create them one by one, take the first that is ready."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from common.domain import attempt
from common.domain.backoff import pause_s
from common.domain.boot import boot_times, hedge_due
from common.domain.instance import Failure, Instance, Phase, RaceResult, Want
from common.domain.outbox import Kind
from common.domain.pacing import Priority
from common.domain.ranking import BYTES_PER_GB, IMAGE_GB, Load, Ranked, rank
from common.domain.reliability import Outcome
from common.domain.rental import Rental, RentalState
from common.domain.spec import Spec
from common.domain.standby import is_mute
from common.domain.strategy import HEDGED, choose, choose_hedge
from common.errors import MarketError, MarketKeyRefused, NoCredit, NoOffer, OfferGone, QuotaExceeded, Throttled
from common.ports import App, Create, Write
from common.records import World, dump, event, with_data_key
from common.workflows import conflicts, offers, rentals
from common.workflows.history import End, ends, retire
from common.workflows.outbox import announce

ROUNDS_MAX = 3
"""Rounds of provisioning before a first deploy or a wake gives up. A recovery never gives up."""
DATA_KEY_BYTES = 32
HOPELESS = {kind.code for kind in (NoCredit, NoOffer, QuotaExceeded, MarketKeyRefused)}
"""Failures that another round would not cure."""


def request(
    app: App, *, account: str, id: str, name: str, spec: Spec, also: Sequence[Write], now: datetime
) -> Instance:  # fmt: skip
    """A new instance, wanted up; the operation that asked for it is recorded in the same commit."""
    instance = Instance(id=id, account=account, name=name, spec=spec, at=now, created_at=now, reason="provision")
    instance = with_data_key(app, instance, app.random(DATA_KEY_BYTES))
    text = f"asked for {spec.num_gpus} x {spec.gpu} by {spec.strategy}"
    app.store.commit(
        [Create("instances", instance.key, dump(instance)), event(app, instance, "requested", text, now), *also]
    )  # fmt: skip
    return instance


def begin(app: App, world: World, now: datetime) -> bool:
    """down -> boot, when the user wants it up and nothing of an earlier life is live.

    The user said so: however its last writer went, this is a wake, which may fail, and no recovery any more.
    """
    kept, instance = world.instance, world.instance.value
    if instance.want is not Want.UP:
        return False
    if any(r.value.is_live and r.value.label != instance.held for r in world.rentals.values()):
        return False
    booting = instance.to(Phase.BOOT, at=now).having(
        rounds=0, tried=(), without_credit=(), not_before=None, failure=None, start="restore", recovering=False
    )  # fmt: skip
    app.store.commit([kept.becomes(booting), event(app, instance, "boot", "looking for a machine", now)])
    return True


def stop_booting(app: App, world: World, now: datetime) -> bool:
    """boot -> down, when the user no longer wants it."""
    instance = world.instance.value
    if instance.want is Want.UP:
        return False
    _give_up(app, world, instance.having(failure=None, recovering=False), "the start was called off", now)
    return True


def choose_winner(app: App, world: World, now: datetime) -> bool:
    """boot -> up: the first ready rental becomes the writer (on the standby, the candidate) and all others are retired,
    in one commit."""
    instance = world.instance.value
    ready = [label for label in instance.race if _is_ready(world, label, now)]
    if not ready:
        return False
    label = min(ready, key=lambda name: (world.rentals[name].value.not_before, name))
    won = world.rentals[label]
    losers = [kept for name, kept in world.rentals.items() if name != label and name != instance.held]
    took_s = (now - won.value.created_at).total_seconds()
    result = RaceResult(
        winner=label, losers=tuple(name for name in instance.race if name != label), ready_after_s=took_s
    )
    # on the standby the winner is the candidate, to which the role goes back once it is equal
    is_replaced = instance.phase is Phase.STANDBY
    up = instance.having(cand=label, race=(), won=result) if is_replaced else instance.taken_by(result, at=now)
    serving = won.value.to(RentalState.SERVING, at=now).model_copy(update={"ready_at": now})
    writes: list[Write] = [world.instance.becomes(up), won.becomes(serving)]
    writes += retire(app, ends(losers, Outcome.LOST_RACE, "lost the race"), now)
    text = f"{won.value.offer.machine_id} was ready after {took_s:.1f} s; {_checked(won.value, world, now)}"
    writes.append(event(app, instance, "won", text, now))
    app.store.commit(writes)
    return True


def _checked(rental: Rental, world: World, now: datetime) -> str:
    judged = attempt.attested(rental, world.host(rental.label), now)
    unknown = judged.unknown if judged else ()
    return f"as offered (not measured: {', '.join(unknown)})" if unknown else "as offered"


def _is_ready(world: World, label: str, now: datetime) -> bool:
    kept = world.rental(label)
    return kept is not None and attempt.is_ready(kept.value, world.host(label), now)


def drop_failed(app: App, world: World, now: datetime) -> bool:
    """Attempts that were refused, failed to boot or took too long leave the race, retired in the same commit."""
    instance = world.instance.value
    failed = {label: end for label in instance.race if (end := _failure_of(app, world, label, now))}
    if not failed:
        return False
    ended = [end for end in failed.values() if isinstance(end, End)]
    refused = [end.kept.value for end in ended if rentals.definite_refusal(end.kept.value) == NoCredit.code]
    broke = {rental.provider for rental in refused}
    without_credit = tuple(sorted(broke.union(instance.without_credit)))
    left = instance.having(
        race=tuple(label for label in instance.race if label not in failed), without_credit=without_credit
    )
    if broke and set(without_credit) >= set(app.markets):
        left = left.having(failure=Failure(code=NoCredit.code, detail="no marketplace account has credit left"))
    if not left.race and left.rounds == 1 and all(_was_gone(end.kept.value) for end in ended):
        left = left.having(not_before=None)  # the offers were only older than we thought: once, look again at once
    why = "; ".join(sorted({end.why if isinstance(end, End) else end for end in failed.values()}))
    writes: list[Write] = [world.instance.becomes(left), *retire(app, ended, now)]
    app.store.commit([*writes, event(app, instance, "attempt_failed", why, now)])
    return True


def _was_gone(rental: Rental) -> bool:
    return rentals.definite_refusal(rental) == OfferGone.code


def _failure_of(app: App, world: World, label: str, now: datetime) -> End | str | None:
    """How an attempt ended, if it did; a sentence alone when its record is settled already."""
    kept = world.rental(label)
    if kept is None:
        return "its record is settled"
    timeout_s = app.settings.timing.boot_timeout_s
    failed = attempt.failure(kept.value, world.host(label), boot_timeout_s=timeout_s, now=now)
    return End(kept, *failed) if failed else None


def hedge(app: App, world: World, now: datetime) -> bool:
    """A second machine beside one that is slow to boot: whichever is ready first wins, the other is released."""
    instance = world.instance.value
    racing = [kept.value for label in instance.race if (kept := world.rental(label))]
    is_due = instance.not_before is None or now >= instance.not_before
    if instance.spec.strategy not in HEDGED or not is_due or not _is_slow(app, instance, racing, now):
        return False
    try:
        found = _search(app, instance, now)
    except MarketError as error:
        return _put_off(app, world, error, now)
    hedged = instance.having(hedges=instance.hedges + 1)
    second = choose_hedge(found, tried=instance.tried)
    if second is None:
        app.store.commit([world.instance.becomes(hedged)])  # this round has had its hedge: one search, not one a minute
        return True
    labels, writes = rentals.plan(app, world.instance, [second.offer], now)
    machine = second.offer.machine_id
    racing_two = hedged.having(
        n=instance.n + 1, race=(*instance.race, *labels), tried=(*instance.tried, machine)
    )  # fmt: skip
    text = f"the first machine is slow to boot: a second is rented, {second.offer.machine_key}"
    app.store.commit([world.instance.becomes(racing_two), *writes, event(app, instance, "hedged", text, now)])
    return True


def _is_slow(app: App, instance: Instance, racing: Sequence[Rental], now: datetime) -> bool:
    if not racing:
        return False
    slowest = min(racing, key=lambda rental: rental.offer.download_mbit_s)
    timeout_s = app.settings.timing.boot_timeout_s
    load = Load(disk_gb=instance.spec.disk_gb, image_gb=instance.spec.image_gb or IMAGE_GB)
    (expected,) = rank([slowest.offer], load, boot_timeout_s=timeout_s)
    return hedge_due(
        [rental.create_called_at for rental in racing],
        hedges=instance.hedges,
        times=boot_times(slowest.provider, timeout_s),
        image_download_s=expected.image_download_s,
        now=now,
    )


def due_at(app: App, world: World) -> datetime | None:
    """When the next attempt may be made, or the next round planned."""
    instance = world.instance.value
    is_sought = instance.phase is Phase.BOOT or (instance.phase is Phase.STANDBY and instance.cand is None)
    is_won = any(world.hosts[label].value.phase for label in instance.race if label in world.hosts)
    if not is_sought or is_won or _is_in_vain(app, world, app.clock()):
        return None
    waiting = [
        kept.value.not_before
        for kept in world.in_state(RentalState.CREATING)
        if kept.value.label in instance.race and kept.value.create_called_at is None
    ]
    return min(waiting, default=None) if instance.race else instance.not_before


def _is_in_vain(app: App, world: World, now: datetime) -> bool:
    """The standby that it would be handed back from is silent."""
    return is_mute(world.instance.value, world.writer_host, for_s=app.settings.timing.dead_man_s, now=now)


def plan_round(app: App, world: World, now: datetime) -> bool:
    """Nobody is racing: search afresh and record the next round, or give up."""
    instance = world.instance.value
    if instance.race or instance.cand is not None or instance.want is not Want.UP or _is_in_vain(app, world, now):
        return False
    is_next_due = instance.not_before is None or now >= instance.not_before
    if not instance.recovering and (_is_hopeless(instance) or (is_next_due and instance.rounds >= ROUNDS_MAX)):
        failure = instance.failure or Failure(code=NoOffer.code, detail="no machine could be started")
        _give_up(app, world, instance.having(want=Want.DOWN, failure=failure), failure.detail, now)
        return True
    if not is_next_due:
        return False
    try:
        found = _search(app, instance, now)
    except MarketError as error:
        return _put_off(app, world, error, now)
    chosen = choose(found, instance.spec.strategy, tried=instance.tried, turn=instance.n)
    later = instance.having(rounds=instance.rounds + 1, hedges=0, not_before=_next_round(app, instance, now))
    if not chosen:
        sentence = offers.no_offer_sentence(instance.spec, blocked=len(found))
        later = later.having(failure=Failure(code=NoOffer.code, detail=sentence))
        app.store.commit([world.instance.becomes(later)])
        return True
    labels, writes = rentals.plan(app, world.instance, [ranked.offer for ranked in chosen], now)
    tried = (*instance.tried, *(ranked.offer.machine_id for ranked in chosen))
    racing = later.having(n=instance.n + len(labels), race=tuple(labels), tried=tried, failure=None)
    app.store.commit([world.instance.becomes(racing), *writes])
    return True


def _search(app: App, instance: Instance, now: datetime) -> list[Ranked]:
    """Without the markets whose account is empty, and without machines that other instances are about to rent.

    A recovery has no choice: where nothing else is left, it takes all of them again.
    """
    urgent = instance.recovering
    first = instance.rounds == 0 and not urgent
    found = offers.search(
        app,
        instance.spec,
        priority=Priority.FAILOVER if urgent else Priority.WAKE,
        who=instance.key,
        fresh_for_s=offers.FRESH_FOR_S if first else offers.FRESH_AGAIN_FOR_S,
    )
    paying = [offer for offer in found if offer.provider not in instance.without_credit]
    found = found if urgent and not paying else paying
    promised = rentals.about_to_create(app)
    free = [offer for offer in found if (offer.provider, offer.machine_id) not in promised] or found
    snapshot_gb = instance.pointer.bytes / BYTES_PER_GB if instance.pointer else 0.0
    region = instance.address_region
    return offers.ranked(app, instance.spec, free, snapshot_gb=snapshot_gb, now=now, standby_region=region)


def _put_off(app: App, world: World, error: MarketError, now: datetime) -> bool:
    """The search told nothing: no round is counted, and the next attempt has its time."""
    instance, timing = world.instance.value, app.settings.timing
    app.log("search_failed", instance=instance.id, error=str(error))
    wait_s = error.retry_after_s if isinstance(error, Throttled) else timing.round_backoff_s
    later = instance.having(not_before=now + timedelta(seconds=wait_s))
    if isinstance(error, (QuotaExceeded, MarketKeyRefused)):  # neither passes within minutes
        later = instance.having(not_before=now + timedelta(seconds=timing.round_backoff_max_s))
        later = later.having(failure=Failure(code=error.code, detail=str(error)))
    app.store.commit([world.instance.becomes(later)])
    return True


def _is_hopeless(instance: Instance) -> bool:
    return instance.failure is not None and instance.failure.code in HOPELESS


def _next_round(app: App, instance: Instance, now: datetime) -> datetime:
    timing = app.settings.timing
    wait_s = pause_s(timing.round_backoff_s, instance.rounds, max_s=timing.round_backoff_max_s)
    return now + timedelta(seconds=wait_s)


def _give_up(app: App, world: World, instance: Instance, why: str, now: datetime) -> None:
    """boot -> down: every attempt is retired in the same commit."""
    held = conflicts.awaited(app, world, now)
    down = instance.to(Phase.DOWN, at=now).having(race=(), held=held)
    called_off = ends([kept for kept in world.rentals.values() if kept.value.label != held], Outcome.CANCELLED, why)
    writes: list[Write] = [world.instance.becomes(down), *retire(app, called_off, now)]
    if instance.failure:
        writes += announce(app, instance, Kind.FAILED, "down", why, now)
    else:
        writes.append(event(app, instance, "down", why, now))
    app.store.commit(writes)
