"""A writer that is lost gives its role back to the record; its machine is retired, or held when it only went silent."""

from __future__ import annotations

from datetime import datetime

from common.domain.instance import Instance, Phase, Want
from common.domain.orders import failed_restore
from common.domain.outbox import Kind
from common.domain.reliability import OF_THE_HOST, Outcome
from common.domain.rental import RentalState
from common.ports import App, Write
from common.records import World, heard_of, overlaid
from common.workflows import conflicts
from common.workflows.history import End, ends, retire
from common.workflows.outbox import announce

FROM_THE_MARKET = {
    "interrupted": "the marketplace took the machine",
    "gone": "the machine is gone",
    "offline": "the machine's host is offline",
    "boot_failed": "the machine's container died",
}


def replace_lost(app: App, world: World, now: datetime) -> bool:
    """up|freezing -> boot (or down): the market confirmed that the writer's machine is gone or taken (rule W5)."""
    writer = world.writer
    if writer is None or writer.value.state is not RentalState.LOST or world.is_guarded():
        return False
    why = FROM_THE_MARKET[writer.value.loss or "gone"]
    writes = retire(app, ends([writer], Outcome.LOST, why), now)
    _commit(app, world, _without_writer(world.instance.value, now), writes, why, now)
    return True


def fence_silent(app: App, world: World, now: datetime) -> bool:
    """up -> boot: listed as running but silent. The epoch fences it; its machine is held until a snapshot covers it.

    When the user wants it down, a writer that runs is frozen first, and one that never came to run is given up here.
    """
    instance, writer = world.instance.value, world.writer
    is_frozen_first = instance.want is not Want.UP and instance.is_running
    if writer is None or is_frozen_first or writer.value.unreachable_at is None or world.is_guarded():
        return False
    host = overlaid(world.writer_host, heard_of(app, now))
    if host and host.silent_for_s(now) <= app.settings.timing.silent_after_s:
        return False
    why = f"the host has been silent for {host.silent_for_s(now):.0f} s" if host else "the host never reported"
    older = [kept for kept in world.rentals.values() if kept.value.state is RentalState.HELD]
    writes = retire(app, [End(kept, Outcome.SILENT, "a newer machine is held") for kept in older], now)
    held = writer.value.to(RentalState.HELD, at=now, message=why)
    writes += [writer.becomes(held), *world.still_silent()]
    told = {"fenced": instance.epoch, "is_taken_over": False, "save_tries": 0}
    fenced = _without_writer(instance, now).having(held=writer.value.label, **told)
    _commit(app, world, fenced, writes, why, now)
    return True


def drop_lost_held(app: App, world: World, now: datetime) -> bool:
    """A held machine that is confirmed lost is retired."""
    lost = [kept for kept in world.in_state(RentalState.LOST) if kept.value.label == world.instance.value.held]
    if not lost:
        return False
    # it is held because it fell silent: that it vanished meanwhile is the same failure
    writes = retire(app, [End(kept, Outcome.SILENT, "lost while held") for kept in lost], now)
    app.store.commit([*writes, world.instance.becomes(world.instance.value.having(held=None))])
    return True


def release_left_over(app: App, world: World, now: datetime) -> bool:
    """In `down` nothing of an earlier life is needed: a held machine that nothing covered is let go with its phase."""
    held = conflicts.awaited(app, world, now)
    live = [kept for kept in world.rentals.values() if kept.value.is_live and kept.value.label != held]
    if not live:
        return False
    writes = retire(app, [End(kept, Outcome.SILENT, "left over from an earlier life") for kept in live], now)
    app.store.commit([*writes, world.instance.becomes(world.instance.value.having(held=held))])
    return True


def replace_unfit(app: App, world: World, now: datetime) -> bool:
    """up -> boot: the restore fails on this machine for a reason of its own (a full disk, no network): another one."""
    result = failed_restore(world.instance.value, world.writer_host)
    if result is None or world.writer is None:
        return False
    why = f"the restore failed on this machine: {result.detail or result.error}"
    machine = world.writer.value.offer.machine_id
    instance = _without_writer(world.instance.value, now).having(tried=(machine,))
    outcome = Outcome.RESTORE_FAILED if result.error in OF_THE_HOST else Outcome.CANCELLED
    writes = retire(app, [End(world.writer, outcome, why)], now)
    _commit(app, world, instance, writes, why, now)
    return True


def _without_writer(instance: Instance, now: datetime) -> Instance:
    phase = Phase.BOOT if instance.want is Want.UP else Phase.DOWN
    return instance.to(phase, at=now).having(
        epoch=instance.epoch + 1,
        writer=None,
        mirror=None,
        fz=None,
        start="restore",
        recovering=True,
        rounds=0,
        tried=(),
        without_credit=(),
        not_before=None,
    )


def _commit(app: App, world: World, instance: Instance, writes: list[Write], why: str, now: datetime) -> None:
    text = f"{why}; going back to the newest verified snapshot"
    told = announce(app, instance, Kind.LOST, "lost", text, now)
    app.store.commit([*writes, world.instance.becomes(instance), *told])
