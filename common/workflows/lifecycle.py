"""The one function that moves an instance: steps from one table, each load -> decide -> one call -> guarded write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TypeAlias

from common.domain.instance import Instance, Phase, Want
from common.domain.rental import Rental, RentalState
from common.errors import DumontError, Exists, Missing, ObjectStoreError, Stale, StoreUnavailable, Throttled
from common.ports import App
from common.records import Kept, World, load, read
from common.workflows import (
    announcements,
    bring,
    conflicts,
    credit,
    deploy,
    failover,
    hibernate,
    mirror,
    rentals,
    restore,
    standby,
    sweep,
    terminate,
    warm_pool,
)

BUDGET_S = 20.0
STEPS_MAX = 12
FOLLOW_S = 50.0
"""Of one invocation that follows an instance: the reconcile comes by each minute."""

Step: TypeAlias = Callable[[App, World, datetime], bool]
"""True = something was written: load again. Raises `Stale` when somebody wrote first."""

CARE: tuple[Step, ...] = (
    standby.note_ready,
    standby.note_keys,
    standby.give_up_late,
    standby.start_again,
    standby.reserve_address,
    standby.create,
    standby.let_go,
    standby.release_address,
)
"""Of the standby's machine, in every phase."""

STEPS: Mapping[Phase, tuple[Step, ...]] = {
    Phase.DOWN: (conflicts.accept, failover.release_left_over, *CARE, deploy.begin, terminate.end),
    Phase.BOOT: (
        deploy.stop_booting,
        rentals.look_due,
        deploy.choose_winner,
        warm_pool.assign,
        deploy.drop_failed,
        rentals.create_due,
        deploy.hedge,
        conflicts.accept,
        failover.drop_lost_held,
        deploy.plan_round,
        *CARE,
    ),
    Phase.UP: (
        mirror.take_over,
        failover.replace_lost,
        failover.fence_silent,
        terminate.discard,
        restore.fall_back,
        failover.replace_unfit,
        restore.note_started,
        hibernate.freeze,
        hibernate.accept_snapshot,
        hibernate.retry_failed,
        conflicts.accept,
        conflicts.release,
        bring.note_brought,
        failover.drop_lost_held,
        mirror.call_on,
        mirror.drain,
        mirror.end_drain,
        mirror.attach,
        standby.plan,
        *CARE,
    ),
    Phase.FREEZING: (
        mirror.take_over,
        mirror.give_back,
        mirror.restart_from_pointer,
        failover.replace_lost,
        terminate.discard,
        hibernate.unfreeze,
        hibernate.look_again,
        hibernate.accept_snapshot,
        hibernate.retry_failed,
        mirror.call_on,
        hibernate.give_up_freezing,
        conflicts.accept,
        conflicts.release,
        failover.drop_lost_held,
        restore.note_started,
        *CARE,
    ),
    Phase.STANDBY: (
        mirror.give_back,
        mirror.restart_from_pointer,
        terminate.discard,
        restore.note_started,
        hibernate.freeze,
        hibernate.accept_snapshot,
        hibernate.retry_failed,
        conflicts.accept,
        conflicts.release,
        failover.drop_lost_held,
        mirror.drop_candidate,
        rentals.look_due,
        deploy.choose_winner,
        deploy.drop_failed,
        rentals.create_due,
        deploy.hedge,
        deploy.plan_round,
        mirror.announce_hand_back,
        mirror.begin_handover,
        *CARE,
    ),
    Phase.HANDOVER: (
        mirror.give_back,
        mirror.restart_from_pointer,
        terminate.discard,
        mirror.hand_back,
        mirror.drop_candidate,
        *CARE,
    ),
    Phase.ENDED: (terminate.purge,),
}
"""What may happen in each phase, first come first served."""

RENTAL_STEPS: Mapping[RentalState, str] = {
    RentalState.CREATING: "rentals.create_due, look_due, deploy.choose_winner, drop_failed; of the pool: warm_pool.run",
    RentalState.READY: "warm_pool.assign, warm_pool.run, sweep (lost); a standby's: standby.let_go",
    RentalState.SERVING: "sweep (lost), failover, hibernate, terminate, mirror.drop_candidate",
    RentalState.HELD: "hibernate.accept_snapshot, conflicts.release, failover.drop_lost_held, release_left_over, "
    "mirror.give_back",
    RentalState.LOST: "failover.replace_lost, failover.drop_lost_held, failover.release_left_over, deploy.drop_failed",
    RentalState.RELEASING: "rentals.destroy_due, sweep (confirmed)",
    RentalState.RELEASED: "settle.run",
}
"""Who moves a rental on from each state: every state has an owner."""


def advance(app: App, key: str) -> Instance:
    """Repeat steps until nothing is due or the budget is spent. Harmless to repeat, to race and to kill anywhere.

    Raises `NotFound`.
    """
    world, _ = _advanced(app, key)
    return world.instance.value


class End(Enum):
    """Why an advance ended."""

    RESTS = auto()
    """Nothing is due any more in the world as it was last read."""
    UNKNOWN = auto()
    """A call gave no information: a later advance looks again."""
    SPENT = auto()
    """The budget."""


def _advanced(app: App, key: str, instance: Kept[Instance] | None = None) -> tuple[World, End]:
    """The world as it was last read, and why no more was done in it."""
    started_at, world = app.clock(), load(app, key, instance)
    for _ in range(STEPS_MAX):
        if (app.clock() - started_at).total_seconds() > BUDGET_S:
            return world, End.SPENT
        if end := _one_step(app, world):
            return world, end
        world = load(app, key, hosts=world.hosts)  # no step changes what hosts said
    return world, End.SPENT


def _one_step(app: App, world: World) -> End | None:
    """Do the first thing that is due; None = done. A step that met another writer counts: the next one loads afresh."""
    now = app.clock()
    for step in STEPS[world.instance.value.phase]:
        try:
            if step(app, world, now):
                app.log("step", instance=world.instance.value.id, step=step.__name__)
                return None
        except (Stale, Exists, Missing) as error:
            app.log("stale", instance=world.instance.value.id, step=step.__name__, error=str(error))
            return None
        except (ObjectStoreError, StoreUnavailable) as error:
            # no information: the step ends, and the next advance looks again (rule E4)
            app.log("unknown", instance=world.instance.value.id, step=step.__name__, error=str(error))
            return End.UNKNOWN
    is_released = any(_release(app, kept, now) for kept in world.machines if kept.value.state is RentalState.RELEASING)
    return None if is_released else End.RESTS


def _release(app: App, kept: Kept[Rental], now: datetime) -> bool:
    try:
        return rentals.destroy_due(app, kept, now)
    except Stale:
        return True


def hint(app: App, key: str | None, instance: Kept[Instance] | None = None) -> World | None:
    """A webhook or a report says that something changed; losing it costs at most one reconcile.

    `instance` = its record, where the caller has just read it. Returns the instance at rest, or None when it did not
    come to rest.
    """
    try:
        return push(app, key, instance) if key is not None else None
    except DumontError as error:
        app.log("hint_failed", key=key, error=str(error))
        return None


def push(app: App, key: str, instance: Kept[Instance] | None = None) -> World | None:
    """Advance; when the next step is due in seconds, have another invocation `follow` it.

    That is the next racer, or a turn at a market. Returns the instance when nothing is due in it any more, else None.
    Raises `NotFound`.
    """
    world, end = _advanced(app, key, instance)
    due_at = app.clock() if end is End.SPENT else due(app, world)
    if due_at is not None and (due_at - app.clock()).total_seconds() < FOLLOW_S:
        app.nudge(key)
    return world if end is End.RESTS else None


def announced(app: App, market: str, headers: Mapping[str, str], body: bytes) -> None:
    """A marketplace's signed event: one listing, compared with our records, and whatever follows from that.

    Raises what `announcements.verified` raises, and `Throttled` when the market gave no information: deliver it again.
    """
    event = announcements.verified(app, market, headers, body, app.clock())
    if event is None:
        return
    swept = sweep.run(app, app.clock(), only=market)
    if market in swept.unknown:
        raise Throttled(f"{market} cannot be listed now", retry_after_s=sweep.SECOND_LISTING_AFTER_S)
    announcements.remember(app, market, event, app.clock())
    for label in swept.lost:
        kept = read(app, "rentals", label, Rental)
        hint(app, kept.value.instance_key if kept else None)


def save_credit(app: App, unsettled: Collection[Rental] | None) -> list[str]:
    """Hibernate what a marketplace account can no longer pay for; returns the keys of those instances.

    `unsettled` = all rentals that may cost money, where they have been read.
    """
    doomed = credit.judge(app, unsettled, app.clock())
    return [key for key, why in doomed.items() if _hibernated(app, key, why)]


def _hibernated(app: App, key: str, why: str) -> bool:
    try:
        world = load(app, key)
        if world.instance.value.want is not Want.UP:
            return False
        hibernate.request(app, world, reason=why, now=app.clock())
        push(app, key)
    except DumontError as error:
        app.log("hibernate_failed", key=key, error=str(error))
        return False
    return True


def follow(app: App, key: str, wait: Callable[[float], None]) -> None:
    """Take every step of the next FOLLOW_S when it is due, waiting in between. Raises `NotFound`."""
    until = app.clock() + timedelta(seconds=FOLLOW_S)
    world = load(app, key)
    for _ in range(STEPS_MAX):
        due_at = due(app, world)
        if due_at is None or due_at > until:
            return
        wait(max(0.0, (due_at - app.clock()).total_seconds()))
        world, _ = _advanced(app, key)


def due(app: App, world: World) -> datetime | None:
    """When the clock alone makes the next step due; None = it waits for a host, a market or the user."""
    times = [deploy.due_at(app, world), standby.due_at(world), mirror.hand_back_due_at(world)]
    if world.instance.value.phase in (Phase.BOOT, Phase.STANDBY):
        times += [rentals.look_due_at(kept.value) for kept in world.in_state(RentalState.CREATING)]
    retired = [kept.value for kept in world.machines if kept.value.state is RentalState.RELEASING]
    times += [rentals.destroy_due_at(app, rental) for rental in retired]
    return min((at for at in times if at is not None), default=None)
