"""From a wish to a machine: search, record the attempts, create them one by one, take the first that is ready."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.instance import Failure, Instance, Phase, RaceResult, Spec, Want
from common.domain.offer import Offer, Wanted
from common.domain.rental import Rental, RentalState
from common.domain.strategy import choose
from common.errors import MarketUnknown, NoCredit, NoOffer, QuotaExceeded, Throttled, UnknownGpu
from common.ports import App, Create, Write
from common.records import Kept, World, dump, event, retire
from common.workflows import rentals

ROUNDS_MAX = 3
"""Rounds of provisioning before a first deploy or a wake gives up. A recovery never gives up."""


def request(
    app: App, *, account: str, id: str, name: str, spec: Spec, also: Sequence[Write], now: datetime
) -> Instance:  # fmt: skip
    """A new instance, wanted up; the operation that asked for it is recorded in the same commit."""
    instance = Instance(id=id, account=account, name=name, spec=spec, at=now, created_at=now, reason="provision")
    text = f"asked for {spec.num_gpus} x {spec.gpu} by {spec.strategy}"
    app.store.commit(
        [Create("instances", instance.key, dump(instance)), event(app, instance, "requested", text, now), *also]
    )  # fmt: skip
    return instance


def offers_for(app: App, spec: Spec) -> list[Offer]:
    """What a wish would find now; raises `NoOffer`, `UnknownGpu` or `NoCredit` instead of an empty answer."""
    if found := offers(app, spec):
        if all(Decimal(market.credit_usd()) <= 0 for market in app.markets.values()):
            raise NoCredit("the marketplace account has no credit left; add credit and try again")
        return found
    if not offers(app, Spec(gpu=spec.gpu)):
        raise UnknownGpu(f"no marketplace offers a GPU called {spec.gpu!r}; see: dumont gpus list")
    raise NoOffer(no_offer_sentence(spec))


def offers(app: App, spec: Spec) -> list[Offer]:
    """Offers of all markets under the price cap, cheapest first."""
    wanted = Wanted(
        gpu=spec.gpu,
        num_gpus=spec.num_gpus,
        disk_gb=spec.disk_gb,
        max_usd_per_hour=spec.max_usd_per_hour,
        regions=spec.regions,
    )
    found = [offer for market in app.markets.values() for offer in market.search(wanted)]
    return sorted(found, key=lambda offer: offer.usd_per_hour(spec.disk_gb))


def begin(app: App, world: World, now: datetime) -> bool:
    """down -> boot, when the user wants it up and nothing of an earlier life is live."""
    kept, instance = world.instance, world.instance.value
    if instance.want is not Want.UP or any(r.value.is_live for r in world.rentals.values()):
        return False
    booting = instance.to(Phase.BOOT, at=now).having(
        rounds=0, tried=(), not_before=None, failure=None, start="restore"
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
    """boot -> up: the first ready rental becomes the writer and all others are retired, in one commit."""
    instance = world.instance.value
    ready = [label for label in instance.race if _is_ready(world, label)]
    if not ready:
        return False
    label = min(ready, key=lambda name: (world.rentals[name].value.not_before, name))
    won = world.rentals[label]
    losers = [kept for name, kept in world.rentals.items() if name != label and name != instance.held]
    took_s = (now - won.value.created_at).total_seconds()
    result = RaceResult(
        winner=label, losers=tuple(name for name in instance.race if name != label), ready_after_s=took_s
    )
    up = instance.to(Phase.UP, at=now).having(
        epoch=instance.epoch + 1,
        writer=label,
        race=(),
        won=result,
        mirror=None,
        start="restore",
        failure=None,
        fz=None,
    )
    serving = won.value.to(RentalState.SERVING, at=now).model_copy(update={"ready_at": now})
    writes: list[Write] = [world.instance.becomes(up), won.becomes(serving)]
    writes += retire(losers, now=now, why="lost the race")
    writes.append(event(app, instance, "won", f"{won.value.offer.machine_id} was ready after {took_s:.1f} s", now))
    app.store.commit(writes)
    return True


def _is_ready(world: World, label: str) -> bool:
    host, kept = world.hosts.get(label), world.rental(label)
    return bool(host and host.phase and kept and kept.value.state is RentalState.CREATING and not kept.value.loss)


def drop_failed(app: App, world: World, now: datetime) -> bool:
    """Attempts that were refused, failed to boot or took too long leave the race, retired in the same commit."""
    instance = world.instance.value
    failed = {label: why for label in instance.race if (why := _failure_of(app, world.rental(label), now))}
    if not failed:
        return False
    kept = [k for label in failed if (k := world.rental(label))]
    no_credit = any(rentals.definite_refusal(k.value) == NoCredit.code for k in kept)
    left = instance.having(race=tuple(label for label in instance.race if label not in failed))
    if no_credit:
        left = left.having(failure=Failure(code=NoCredit.code, detail="the marketplace account has no credit left"))
    why = "; ".join(sorted(set(failed.values())))
    writes: list[Write] = [world.instance.becomes(left), *retire(kept, now=now, why=why)]
    app.store.commit([*writes, event(app, instance, "attempt_failed", why, now)])
    return True


def _failure_of(app: App, kept: Kept[Rental] | None, now: datetime) -> str | None:
    if kept is None:
        return "its record is settled"
    rental = kept.value
    if rental.state is not RentalState.CREATING:
        return rental.message or f"it is {rental.state}"
    if rental.loss:
        return f"{rental.loss}: {rental.message}"
    called = rental.create_called_at
    if called and (now - called).total_seconds() > app.settings.timing.boot_timeout_s:
        return f"not ready {app.settings.timing.boot_timeout_s:.0f} s after its create"
    return None


def due_at(world: World) -> datetime | None:
    """When the next attempt may be made, or the next round planned."""
    instance = world.instance.value
    if instance.phase is not Phase.BOOT or any(_is_ready(world, label) for label in instance.race):
        return None
    waiting = [
        kept.value.not_before
        for kept in world.in_state(RentalState.CREATING)
        if kept.value.label in instance.race and kept.value.create_called_at is None
    ]
    return min(waiting, default=None) if instance.race else instance.not_before


def plan_round(app: App, world: World, now: datetime) -> bool:
    """Nobody is racing: search afresh and record the next round, or give up."""
    instance = world.instance.value
    if instance.race:
        return False
    is_next_due = instance.not_before is None or now >= instance.not_before
    if not instance.recovering and (_is_hopeless(instance) or (is_next_due and instance.rounds >= ROUNDS_MAX)):
        failure = instance.failure or Failure(code=NoOffer.code, detail="no machine could be started")
        _give_up(app, world, instance.having(want=Want.DOWN, failure=failure), failure.detail, now)
        return True
    if not is_next_due:
        return False
    try:
        found = offers(app, instance.spec)
    except (MarketUnknown, Throttled, QuotaExceeded) as error:
        app.log("search_failed", instance=instance.id, error=str(error))
        return False
    chosen = choose(found, instance.spec.strategy, tried=instance.tried)
    later = instance.having(rounds=instance.rounds + 1, not_before=_next_round(app, instance, now))
    if not chosen:
        later = later.having(failure=Failure(code=NoOffer.code, detail=no_offer_sentence(instance.spec)))
        app.store.commit([world.instance.becomes(later)])
        return True
    labels, writes = rentals.plan(app, world.instance, chosen, now)
    tried = (*instance.tried, *(offer.machine_id for offer in chosen))
    racing = later.having(n=instance.n + len(labels), race=tuple(labels), tried=tried, failure=None)
    app.store.commit([world.instance.becomes(racing), *writes])
    return True


def no_offer_sentence(spec: Spec) -> str:
    cap = f" at up to {spec.max_usd_per_hour} USD/h" if spec.max_usd_per_hour else ""
    where = f" in {', '.join(spec.regions)}" if spec.regions else ""
    return f"no offer of {spec.num_gpus} x {spec.gpu}{where}{cap}; raise the cap, add regions or choose another GPU"


def _is_hopeless(instance: Instance) -> bool:
    return instance.failure is not None and instance.failure.code in {NoCredit.code, NoOffer.code}


def _next_round(app: App, instance: Instance, now: datetime) -> datetime:
    timing = app.settings.timing
    return now + timedelta(seconds=min(timing.round_backoff_s * 2**instance.rounds, timing.round_backoff_max_s))


def _give_up(app: App, world: World, instance: Instance, why: str, now: datetime) -> None:
    """boot -> down: every attempt is retired in the same commit."""
    down = instance.to(Phase.DOWN, at=now).having(race=(), held=None)
    writes: list[Write] = [world.instance.becomes(down), *retire(list(world.rentals.values()), now=now, why=why)]
    app.store.commit([*writes, event(app, instance, "down", why, now)])
