"""The end of an instance: a last verified snapshot first, unless the user discards it; kept for days, then purged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from common.domain.instance import Instance, Phase, Want
from common.domain.reliability import Outcome
from common.errors import IllegalMove
from common.ports import App, Write, every
from common.records import World, event
from common.workflows import bring
from common.workflows.history import End, retire

DELETE_BATCH = 1000


def request(app: App, world: World, *, discard: bool, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """The wish to end it. Asked again it may only become a discard; ended is ended (asking again changes nothing)."""
    instance = world.instance.value
    if instance.phase is Phase.ENDED:
        app.store.commit([world.instance.unchanged(), *also])
        return instance
    wished = instance.having(want=Want.GONE, discard=discard or instance.discard, reason="terminate", failure=None)
    text = "asked to terminate" + (", discarding unsaved work" if discard else "")
    app.store.commit([world.instance.becomes(wished), event(app, instance, "terminate", text, now), *also])
    return wished


def request_purge(app: App, world: World, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """The wish to delete a terminated instance's snapshots now; raises `IllegalMove` for one that still lives."""
    instance = world.instance.value
    if instance.phase is not Phase.ENDED:
        raise IllegalMove(f"{instance.id} is not terminated; terminate it first")
    wished = instance.having(purge=True)
    app.store.commit([world.instance.becomes(wished), event(app, instance, "purge", "asked to purge", now), *also])
    return wished


def discard(app: App, world: World, now: datetime) -> bool:
    """up|freezing -> down without a snapshot: only because the user said so, in these words."""
    instance = world.instance.value
    if not (instance.want is Want.GONE and instance.discard):
        return False
    down = instance.to(Phase.DOWN, at=now).having(
        writer=None, mirror=None, cand=None, race=(), held=None, fz=None, epoch=instance.epoch + 1
    )
    served = world.writer if instance.is_running else None
    outcomes = [(kept, Outcome.SERVED if kept is served else Outcome.CANCELLED) for kept in world.rentals.values()]
    writes = retire(app, [End(kept, outcome, "terminated, discarding") for kept, outcome in outcomes], now)
    app.store.commit([*writes, world.instance.becomes(down), event(app, instance, "down", "discarded", now)])
    return True


def end(app: App, world: World, now: datetime) -> bool:
    """down -> ended, once no machine of it is live."""
    instance = world.instance.value
    if instance.want is not Want.GONE or any(kept.value.is_live for kept in world.machines):
        return False
    if instance.address_region is not None:
        return False  # `standby.release_address` comes first
    keep_until = now + timedelta(days=app.settings.keep_after_terminate_days)
    ended = instance.to(Phase.ENDED, at=now).having(ended_at=now, keep_until=keep_until, copies=())
    text = f"terminated; snapshots are kept until {keep_until:%Y-%m-%d %H:%M} UTC"
    lines = [event(app, instance, "ended", text, now), *bring.dropped(app, instance, now)]
    app.store.commit([world.instance.becomes(ended), *lines])
    return True


def purge(app: App, world: World, now: datetime) -> bool:
    """Delete every object of a terminated instance, when asked to or when its time has come.

    That it is to go is written first: from then on nobody can ask for it back.
    """
    instance = world.instance.value
    is_due = instance.keep_until is not None and now >= instance.keep_until
    if instance.purged_at or not (instance.purge or is_due):
        return False
    if not instance.purge:
        app.store.commit([world.instance.becomes(instance.having(purge=True))])
        return True
    keys = [stored.key for stored in app.objects.list(f"instances/{instance.key}/")]
    for start in range(0, len(keys), DELETE_BATCH):
        app.objects.delete(keys[start : start + DELETE_BATCH])
    # without its key whatever a store may still have of it is noise
    gone = {"pointer": None, "data_key": None, "wrapped_by": None, "prune_due_at": None, "drill_due_at": None}
    purged = instance.having(purged_at=now, keep_until=None, **gone)
    app.store.commit([world.instance.becomes(purged), event(app, instance, "purged", f"{len(keys)} objects", now)])
    return True


def keys_due_for_purge(app: App, now: datetime) -> list[str]:
    """Terminated instances whose snapshots were kept long enough."""
    return [doc.id for doc in every(app.store, "instances", [("keep_until", "<=", now)])]
