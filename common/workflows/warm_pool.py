"""The warm pool (rule C2): a job fills, ages and empties it; a machine gets its owner in ONE commit on both records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any

from common.domain import attempt, pool
from common.domain.host import HostRecord
from common.domain.instance import Instance, RaceResult
from common.domain.pacing import Priority
from common.domain.pool import PoolRecord
from common.domain.reliability import Outcome
from common.domain.rental import POOL, Rental, RentalState
from common.domain.strategy import Strategy
from common.errors import DumontError, MarketError
from common.ports import App, Write, every
from common.records import Kept, World, dump, event, read, record_of
from common.workflows import history, offers, rentals
from common.workflows.history import End, ends


@dataclass
class Summary:
    """What one pass did, in machines."""

    pool: int = 0
    ready: int = 0
    let_go: int = 0
    planned: int = 0
    created: int = 0


def run(app: App, now: datetime) -> dict[str, Any]:
    """One pass: let go what is lost, old, unfit or too much; note what is ready; fill up. Each write is guarded."""
    summary, found = Summary(), members(app)
    if not found and app.settings.pool.size == 0:
        return asdict(summary)
    for kept in found:
        _guarded(app, kept.value.label, partial(_look_after, app, kept, summary, now))
    _drop_surplus(app, summary, now)
    _guarded(app, POOL, partial(_refill, app, summary, now))
    for kept in members(app):
        summary.pool += kept.value.is_live
        summary.ready += kept.value.state is RentalState.READY
    return asdict(summary)


def assign(app: App, world: World, now: datetime) -> bool:
    """boot -> up at once, by a machine of the pool: ONE commit, guarded on the instance's and the rental's revision."""
    instance = world.instance.value
    if instance.spec.strategy is not Strategy.SERVERLESS:
        return False
    free = [kept for kept in members(app) if _is_assignable(app, kept, instance, now)]
    if not free:
        return False
    won = min(free, key=lambda kept: (kept.value.offer.usd_per_hour(kept.value.disk_gb), kept.value.label))
    result = RaceResult(
        winner=won.value.label, losers=instance.race, ready_after_s=(now - instance.at).total_seconds()
    )  # fmt: skip
    serving = won.value.assigned(account=instance.account, instance_id=instance.id, instance_key=instance.key, at=now)
    racing = [kept for label, kept in world.rentals.items() if label != instance.held]
    text = f"{won.value.offer.machine_id} of the warm pool"
    writes: list[Write] = [world.instance.becomes(instance.taken_by(result, at=now)), won.becomes(serving)]
    writes += history.retire(app, ends(racing, Outcome.LOST_RACE, "a machine of the pool was ready"), now)
    app.store.commit([*writes, event(app, instance, "won", text, now)])
    return True


def members(app: App) -> list[Kept[Rental]]:
    """The pool's machines that nobody owns yet, those on their way out too."""
    docs = every(app.store, "rentals", [("account", "==", POOL), ("settled", "==", False)])
    return [Kept(doc, record_of(doc, Rental)) for doc in docs]


def _is_assignable(app: App, kept: Kept[Rental], instance: Instance, now: datetime) -> bool:
    if kept.value.state is not RentalState.READY:
        return False
    silent_after_s = app.settings.timing.silent_after_s
    return pool.assignable(kept.value, _host(app, kept), instance.spec, silent_after_s=silent_after_s, now=now)


def _look_after(app: App, kept: Kept[Rental], summary: Summary, now: datetime) -> None:
    """One machine: its end, its readiness, its create call or its destroy call, whichever is due."""
    rental, host, timing = kept.value, _host(app, kept), app.settings.timing
    if rental.state is RentalState.RELEASING:
        rentals.destroy_due(app, kept, now)
    end = pool.ended(
        rental,
        host,
        app.settings.pool,
        boot_timeout_s=timing.boot_timeout_s,
        silent_after_s=timing.silent_after_s,
        now=now,
    )
    if end:
        _let_go(app, End(kept, *end), summary, now)
    elif attempt.is_ready(rental, host, now):
        ready = rental.to(RentalState.READY, at=now).model_copy(update={"ready_at": now})
        app.store.cas(kept.doc, dump(ready))
    elif rental.state is RentalState.CREATING:
        created = rentals.create_if_due(app, kept, None, now)
        summary.created += created
        if not created:
            rentals.look_if_due(app, kept, None, now)


def _let_go(app: App, end: End, summary: Summary, now: datetime) -> None:
    app.store.commit(history.retire(app, [end], now))
    app.log("pool_let_go", label=end.kept.value.label, outcome=end.outcome, why=end.why)
    summary.let_go += 1


def _drop_surplus(app: App, summary: Summary, now: datetime) -> None:
    live = {kept.value.label: kept for kept in members(app) if kept.value.is_live}
    for rental in pool.surplus(app.settings.pool, [kept.value for kept in live.values()]):
        outcome = Outcome.SERVED if rental.state is RentalState.READY else Outcome.CANCELLED
        end = End(live[rental.label], outcome, "more than the pool's size, terms or budget want")
        _guarded(app, rental.label, partial(_let_go, app, end, summary, now))


def _refill(app: App, summary: Summary, now: datetime) -> None:
    """The pool's document is read BEFORE the machines are counted, and guards the commit: no two refills both fit."""
    terms = app.settings.pool
    if terms.size == 0:
        return
    record = _record(app)
    live = [kept.value for kept in members(app) if kept.value.is_live]
    if len(live) >= terms.size:
        return
    try:
        found = offers.search(app, terms.spec(), priority=Priority.POLL, who=POOL)
    except MarketError as error:
        app.log("search_failed", instance=POOL, error=str(error))
        return
    promised = rentals.about_to_create(app)
    free = [offer for offer in found if (offer.provider, offer.machine_id) not in promised]
    ranked = offers.ranked(app, terms.spec(), free, snapshot_gb=0.0, now=now)
    chosen = [one.offer for one in pool.wanting(terms, live, ranked, record.value.tried)]
    if not chosen:
        return
    owner = rentals.Owner(
        id=POOL,
        n=record.value.n,
        account=POOL,
        image=terms.image,
        disk_gb=terms.disk_gb,
        max_usd_per_hour=terms.max_usd_per_hour,
    )
    labels, writes = rentals.plan_for(app, owner, chosen, now)
    planned = record.value.planning([offer.machine_id for offer in chosen])
    app.store.commit([record.becomes(planned), *writes])
    summary.planned += len(labels)


def _record(app: App) -> Kept[PoolRecord]:
    """The pool's own document; raises `Exists` when somebody else is just creating it."""
    kept = read(app, "pool", "self", PoolRecord)
    return kept or Kept(app.store.create("pool", "self", dump(PoolRecord())), PoolRecord())


def _host(app: App, kept: Kept[Rental]) -> HostRecord | None:
    found = read(app, "hosts", kept.value.label, HostRecord)
    return found.value if found else None


def _guarded(app: App, label: str, do: Callable[[], None]) -> None:
    """Somebody moved it meanwhile, or a call failed: the other machines are looked after, the next pass looks again."""
    try:
        do()
    except DumontError as error:
        app.log("pool_step_failed", label=label, error=str(error))
