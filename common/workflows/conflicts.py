"""What only a fenced machine had: verified, told, and kept until the writer has it beside its own files (`bring`)."""

from __future__ import annotations

from datetime import datetime

from common.domain import conflict as rules
from common.domain.bring import folder_of
from common.domain.host import SAVE_TRIES, OrderResult, SnapshotReport, epoch_of_save, number_of_save
from common.domain.instance import Conflict
from common.domain.outbox import Kind
from common.domain.reliability import Outcome
from common.domain.rental import RentalState
from common.domain.version import Version
from common.errors import ObjectMissing, SnapshotError
from common.ports import App
from common.records import World, event, heard_of, overlaid
from common.workflows.history import End, retire
from common.workflows.outbox import announce
from common.workflows.proof import verified


def accept(app: App, world: World, now: datetime) -> bool:
    """A fenced machine has said what it alone has: verified as every snapshot is, it is kept."""
    instance = world.instance.value
    for label in filter(None, (instance.held, instance.standby)):
        host = world.host(label)
        result = rules.saved(instance, label, host)
        if result and host:
            _judge(app, world, label, result, host.progress.snapshot, now)
            return True
    return False


def _judge(
    app: App, world: World, label: str, result: OrderResult, report: SnapshotReport | None, now: datetime
) -> None:
    instance, epoch = world.instance.value, epoch_of_save(result) or 0
    is_held = label == instance.held
    known = {"conflicts_of": epoch} if is_held else {"refusals_of": epoch, "refusal_tries": 0}
    if not result.ok:
        _give_up(app, world, known, f"{result.error}: {result.detail}", now)
    elif report is None or report.order != result.id:
        app.store.commit([world.instance.becomes(instance.having(**known))])  # it had nothing alone
    else:
        try:
            name = rules.name_of(epoch, of_standby=not is_held)
            found = _verified(app, world, report, epoch).model_copy(update={"name": name})
            _keep(app, world, known, found, now)
        except (SnapshotError, ObjectMissing) as error:
            tries = number_of_save(result) + 1
            if tries < SAVE_TRIES:  # it still has everything
                again = instance.having(**{"save_tries" if is_held else "refusal_tries": tries})
                app.store.commit([world.instance.becomes(again)])
            else:
                _give_up(app, world, known, f"{error.code}: {error}", now)


def _verified(app: App, world: World, report: SnapshotReport, epoch: int) -> Conflict:
    found = verified(app, world.instance.value, report.manifest_key, Version(epoch=epoch, seq=report.seq))
    return Conflict(epoch=epoch, manifest_key=report.manifest_key, files=found.files, bytes=found.bytes)


def _keep(app: App, world: World, known: dict[str, int], conflict: Conflict, now: datetime) -> None:
    instance = world.instance.value
    kept = instance.having(**known, conflicts=(*instance.conflicts, conflict))
    text = f"{conflict.files} files that only an earlier machine had are kept; a GPU gets them in {_folder(conflict)}"
    app.store.commit([world.instance.becomes(kept), *announce(app, instance, Kind.CONFLICT, "conflict", text, now)])


def _give_up(app: App, world: World, known: dict[str, int], why: str, now: datetime) -> None:
    instance = world.instance.value
    line = event(app, instance, "conflict_lost", f"what only an earlier machine had could not be kept: {why}", now)
    app.store.commit([world.instance.becomes(instance.having(**known)), line])


def release(app: App, world: World, now: datetime) -> bool:
    """A held machine that a snapshot covers, and that was waited for with the pointer, is let go."""
    instance = world.instance.value
    held = world.rental(instance.held)
    if held is None or held.value.state is not RentalState.HELD or not instance.is_covered:
        return False
    if is_awaited(app, world, now):
        return False
    writes = retire(app, [End(held, Outcome.SILENT, "covered by a newer snapshot")], now)
    app.store.commit([*writes, world.instance.becomes(instance.having(held=None))])
    return True


def is_awaited(app: App, world: World, now: datetime) -> bool:
    """Is the held machine kept for what it alone has?"""
    instance = world.instance.value
    kept, host = world.rental(instance.held), world.host(instance.held)
    if kept is None or host is None or rules.unsaved(instance, host.label, host) is None:
        return False
    heard = overlaid(host, heard_of(app, now))  # while it was settled, what it said was rarely written down
    return rules.is_awaited(instance, kept.value, heard, silent_after_s=app.settings.timing.silent_after_s, now=now)


def awaited(app: App, world: World, now: datetime) -> str | None:
    """The label of the held machine that a move keeps, however little it is needed otherwise."""
    return world.instance.value.held if is_awaited(app, world, now) else None


def is_refused_unsaved(app: App, world: World, now: datetime) -> bool:
    """Does the standby answer that it sealed in vain, and has not saved yet what was done on it since then?

    Its engine gives up within SAVE_MAX_S, three times.
    """
    instance = world.instance.value
    host = world.host(instance.standby)
    if host is None or rules.unsaved(instance, host.label, host) is None:
        return False
    heard = overlaid(host, heard_of(app, now)) or host
    return heard.silent_for_s(now) <= app.settings.timing.silent_after_s


def _folder(conflict: Conflict) -> str:
    return f"{folder_of(conflict)} of the workspace"
