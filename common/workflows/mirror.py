"""The pair of a GPU and its standby: attached, taking over when the GPU dies, handing back, and parted without a loss.

Every function is a step of the lifecycle: one guarded commit. Why each guard is needed, the decision page says.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from common.domain import standby as rules
from common.domain.conflict import name_of
from common.domain.instance import Conflict, Instance, Phase, Want
from common.domain.orders import COPY_FAILED
from common.domain.outbox import Kind
from common.domain.reliability import OF_THE_HOST, Outcome
from common.domain.rental import RentalState
from common.errors import IllegalMove, NotFound
from common.ports import App, Write
from common.records import World, event, heard_of, overlaid
from common.workflows import conflicts
from common.workflows.history import End, ends, retire
from common.workflows.outbox import announce


def attach(app: App, world: World, now: datetime) -> bool:
    """Both say that they are equal in this epoch: from now on what the mirror took is durable (rules A1 and D2)."""
    instance = world.instance.value
    if not rules.may_attach(instance, world.writer_host, world.host(instance.standby)):
        return False
    if rules.is_lost(world.standby.value if world.standby else None):
        return False
    attached = instance.having(mirror=instance.standby)
    text = "mirrored to the standby, which takes over if the GPU dies"
    writes = [*_at_rest(world), event(app, instance, "mirrored", text, now)]
    app.store.commit([world.instance.becomes(attached), *writes])
    return True


def drain(app: App, world: World, now: datetime) -> bool:
    """The mirror is lost or not wanted: a new epoch for the same writer, and it goes with that one's first snapshot.

    Rule D1: only a new epoch tells a snapshot that was taken after the GPU knew from one taken before.
    """
    instance, kept = world.instance.value, world.standby
    if instance.mirror is None or instance.drain == "going" or not instance.is_served or instance.is_on_standby:
        return False
    is_gone = rules.is_lost(kept.value if kept else None)
    if not is_gone and instance.spec.standby and instance.drain is None:
        return False
    going = instance.having(drain="going", epoch=instance.epoch + 1, start="keep", called=False)
    text = "the standby is lost: saving what only it and the GPU have" if is_gone else "the standby is on its way out"
    told = announce(app, instance, Kind.UNPROTECTED, "unprotected", text, now) if is_gone else []
    line = [] if is_gone else [event(app, instance, "standby", text, now)]
    app.store.commit([world.instance.becomes(going), *told, *line])
    return True


def end_drain(app: App, world: World, now: datetime) -> bool:
    """The new epoch's first snapshot is in: the mirror is detached, and `let_go` retires it."""
    instance = world.instance.value
    if instance.drain != "going" or instance.mirror is None or not instance.is_covered:
        return False
    detached = instance.having(mirror=None)
    app.store.commit([world.instance.becomes(detached), event(app, instance, "standby", "detached", now)])
    return True


# --- the GPU dies


def call_on(app: App, world: World, now: datetime) -> bool:
    """up|freezing: the GPU has not reached us for the dead man's time, and its mirror hears it all the same.

    Its agent should have stopped it (rule R10). Where that one is gone, the programs of the pair live on, and nobody
    saves, freezes or hibernates a machine that bills: the mirror, which has the next word, is asked to take over.
    """
    instance, host, limit_s = world.instance.value, world.writer_host, app.settings.timing.dead_man_s
    kept, mirror, silent_after_s = world.standby, world.host(instance.mirror), app.settings.timing.silent_after_s
    if instance.mirror is None or instance.called:
        return False
    if not rules.is_reached(kept.value if kept else None, mirror, silent_after_s=silent_after_s, now=now):
        return False  # it would act on this much later, when the GPU may have come back
    if host is None or host.silent_for_s(now) < limit_s:
        return False
    heard = overlaid(host, heard_of(app, now)) or host  # asked only now: one that is settled is rarely written down
    if heard.silent_for_s(now) < limit_s:
        return False
    text = f"the GPU's host has been silent for {heard.silent_for_s(now):.0f} s: the standby is asked to take over"
    called = world.instance.becomes(instance.having(called=True))
    app.store.commit([called, *world.still_silent(), event(app, instance, "failover", text, now)])
    return True


def take_over(app: App, world: World, now: datetime) -> bool:
    """up|freezing: the standby's claim makes it the writer, and the GPU held (rule W2)."""
    instance, kept, host = world.instance.value, world.standby, world.host(world.instance.value.standby)
    claim = host.claim if host else None
    if claim is None or kept is None or rules.is_lost(kept.value) or not rules.may_take_over(instance, claim):
        return False
    if rules.is_behind(instance, claim):
        return False  # its orders say what it lacks (`orders.rewind`)
    before = world.writer
    freezes = instance.phase is Phase.FREEZING
    taken = (instance if freezes else instance.to(Phase.STANDBY, at=now)).having(
        epoch=instance.epoch + 1,
        writer=instance.standby,
        mirror=None,
        held=instance.writer,
        fenced=instance.epoch,
        is_taken_over=True,
        save_tries=0,
        conflicts=instance.conflicts_anew,
        start="keep",
        drain=None,
        called=False,
        hand_back=False,
        recovering=True,
        rounds=0,
        tried=(),
        without_credit=(),
        not_before=None,
        failure=None,
        fz=app.ids() if freezes else None,
    )
    older = [k for k in world.rentals.values() if k.value.state is RentalState.HELD]
    writes = retire(app, [End(k, Outcome.SILENT, "a newer machine is held") for k in older], now)
    if before is not None:
        lost = before.value.state is RentalState.LOST
        writes += [before.unchanged()] if lost else [before.becomes(before.value.to(RentalState.HELD, at=now))]
    text = "the GPU is gone: you work on the standby, and another GPU is being rented"
    told = announce(app, instance, Kind.ON_STANDBY, "on_standby", text, now)
    writes.append(kept.becomes(kept.value.model_copy(update={"writes": True})))
    app.store.commit([*writes, world.instance.becomes(taken), *told])
    return True


def give_back(app: App, world: World, now: datetime) -> bool:
    """The standby died as the writer, before a snapshot covered what the GPU before it has (rule W3)."""
    instance = world.instance.value
    held = world.rental(instance.held)
    if not _writer_lost(world) or instance.is_covered or held is None or held.value.state is not RentalState.HELD:
        return False
    back = (
        _without_candidate(instance)
        .to(Phase.UP, at=now)
        .having(epoch=instance.epoch + 1, writer=instance.held, start="keep", mirror=None, held=None, fz=None)
        .having(conflicts_of=instance.fenced, conflicts=_of_others(instance))
    )
    racing = [kept for kept in world.rentals.values() if kept.value.label != instance.held]
    writes = retire(app, ends(racing, Outcome.CANCELLED, "the role went back to the machine before"), now)
    writes.append(held.becomes(held.value.to(RentalState.SERVING, at=now)))
    text = "the standby died before its first snapshot: back to the GPU before it"
    app.store.commit([*writes, world.instance.becomes(back), *announce(app, instance, Kind.LOST, "lost", text, now)])
    return True


def _of_others(instance: Instance) -> tuple[Conflict, ...]:
    """What only the machine before had is no conflict once it writes again."""
    return tuple(each for each in instance.conflicts if each.name != name_of(instance.fenced, of_standby=False))


def restart_from_pointer(app: App, world: World, now: datetime) -> bool:
    """The standby died as the writer: a GPU restores the newest snapshot. What a candidate has half is not kept."""
    instance = world.instance.value
    if not _writer_lost(world):
        return False
    phase, held = Phase.BOOT if instance.want is Want.UP else Phase.DOWN, conflicts.awaited(app, world, now)
    lost = (
        _without_candidate(instance)
        .to(phase, at=now)
        .having(
            epoch=instance.epoch + 1, writer=None, mirror=None, held=held, start="restore", fz=None, recovering=True
        )
    )
    others = [kept for kept in world.rentals.values() if kept.value.label != held]
    writes = retire(app, ends(others, Outcome.CANCELLED, "the standby died"), now)
    text = "the standby died: going back to the newest verified snapshot"
    app.store.commit([*writes, world.instance.becomes(lost), *announce(app, instance, Kind.LOST, "lost", text, now)])
    return True


def _writer_lost(world: World) -> bool:
    is_on_standby = world.instance.value.is_on_standby
    return is_on_standby and rules.is_lost(world.standby.value if world.standby else None)


def _without_candidate(instance: Instance) -> Instance:
    return instance.having(cand=None, race=(), rounds=0, tried=(), not_before=None, hand_back=False, hand_back_at=None)


# --- the way back


def drop_candidate(app: App, world: World, now: datetime) -> bool:
    """standby|handover: a candidate that is lost, silent, unfit or no longer wanted is retired; its label is dead."""
    instance = world.instance.value
    if instance.cand is None:
        return False
    unfit = _unfit(app, world, now)
    if unfit is None:
        return False
    outcome, why = unfit
    kept = world.rental(instance.cand)
    # its round is not forgotten: the next one comes later each time
    free = instance.having(cand=None, hand_back_at=None)
    if instance.phase is Phase.HANDOVER:
        free = free.to(Phase.STANDBY, at=now)
    writes = retire(app, ends([kept] if kept else [], outcome, why), now)
    app.store.commit([*writes, world.instance.becomes(free), event(app, instance, "candidate", why, now)])
    return True


def _unfit(app: App, world: World, now: datetime) -> tuple[Outcome, str] | None:
    """Why the candidate cannot become the writer, and how that counts for its machine; None = nothing is wrong."""
    instance, timing = world.instance.value, app.settings.timing
    kept, host = world.rental(instance.cand), world.host(instance.cand)
    if instance.want is not Want.UP:
        return Outcome.CANCELLED, "it is no longer wanted up"
    if rules.is_mute(instance, world.writer_host, for_s=timing.dead_man_s, now=now):
        return Outcome.CANCELLED, "the standby is silent: nothing can be handed back until it is heard"
    if kept is None or kept.value.state is not RentalState.SERVING:
        return Outcome.LOST, "the candidate is lost"
    if host is None or host.silent_for_s(now) > timing.silent_after_s:
        return Outcome.SILENT, "the candidate is silent"
    failed = host.progress.last
    if failed is not None and not failed.ok and failed.id.startswith(COPY_FAILED):
        outcome = Outcome.RESTORE_FAILED if failed.error in OF_THE_HOST else Outcome.CANCELLED
        return outcome, f"the candidate cannot be filled: {failed.detail or failed.error}"
    is_stuck = instance.phase is Phase.HANDOVER and (now - instance.at).total_seconds() > rules.HANDOVER_MAX_S
    return (Outcome.CANCELLED, "the hand-over took too long") if is_stuck else None


def announce_hand_back(app: App, world: World, now: datetime) -> bool:
    """The candidate follows the standby and the user agrees or is idle: who works there is told, and then it goes."""
    instance = world.instance.value
    standby, candidate = world.host(instance.standby), world.host(instance.cand)
    if instance.hand_back_at is not None or not instance.is_covered or instance.want is not Want.UP:
        return False
    if conflicts.is_awaited(app, world, now):
        return False  # its commit lets the held machine go
    if not rules.is_copied(instance, standby, candidate):
        return False
    if not rules.wants_back(instance, standby, idle_for_s=app.settings.timing.hand_back_idle_s, now=now):
        return False
    at = now + timedelta(seconds=app.settings.timing.hand_back_notice_s)
    text = f"goes back to a GPU at {at:%H:%M:%S} UTC"
    told = announce(app, instance, Kind.HANDING_BACK, "hand_back", text, now)
    app.store.commit([world.instance.becomes(instance.having(hand_back_at=at)), *told])
    return True


def begin_handover(app: App, world: World, now: datetime) -> bool:
    """standby -> handover: the standby stops writing when it sees this."""
    instance = world.instance.value
    if instance.hand_back_at is None or now < instance.hand_back_at or instance.cand is None:
        return False
    if instance.want is not Want.UP or not instance.is_covered:
        return False
    over = instance.to(Phase.HANDOVER, at=now).having(hand_back_at=None)
    app.store.commit([world.instance.becomes(over), event(app, instance, "hand_back", "handing over", now)])
    return True


def hand_back(app: App, world: World, now: datetime) -> bool:
    """handover -> up: the candidate equals the frozen standby and becomes the writer, the standby its mirror (W4)."""
    instance = world.instance.value
    candidate = world.rental(instance.cand)
    if not rules.is_equal(instance, world.host(instance.standby), world.host(instance.cand)) or candidate is None:
        return False
    held = conflicts.awaited(app, world, now)
    up = instance.to(Phase.UP, at=now).having(
        epoch=instance.epoch + 1,
        writer=instance.cand,
        mirror=instance.standby,
        cand=None,
        held=held,
        start="keep",
        recovering=False,
        hand_back=False,
        rounds=0,
        tried=(),
    )
    older = [k for k in world.rentals.values() if k.value.label == instance.held != held]
    writes = retire(app, [End(k, Outcome.SILENT, "handed back to another machine") for k in older], now)
    told = announce(app, instance, Kind.BACK, "back", "back on a GPU", now)
    app.store.commit([*writes, *_at_rest(world), candidate.unchanged(), world.instance.becomes(up), *told])
    return True


def _at_rest(world: World) -> list[Write]:
    """The standby writes no more: nothing has to be looked at before it, its machine or its GPU says something new."""
    kept = world.standby
    return [kept.becomes(kept.value.model_copy(update={"writes": False}))] if kept and kept.value.writes else []


def hand_back_due_at(world: World) -> datetime | None:
    """When who works on the standby has been told for long enough."""
    instance = world.instance.value
    return instance.hand_back_at if instance.phase is Phase.STANDBY else None


# --- what the user asks for


def request_failover(app: App, world: World, *, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """The user wants the standby to take over now. Raises `NotFound` without a standby that is equal."""
    instance = world.instance.value
    if instance.is_on_standby:
        app.store.commit([world.instance.unchanged(), *also])
        return instance
    if instance.mirror is None or not instance.is_running:
        raise NotFound(f"{instance.id} has no standby that could take over: it is {_shown(instance)}")
    called = instance.having(called=True)
    text = "asked to move to the standby"
    app.store.commit([world.instance.becomes(called), event(app, instance, "failover", text, now), *also])
    return called


def request_hand_back(app: App, world: World, *, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """The user agrees to go back to a GPU. Raises `IllegalMove` when it is not on the standby."""
    instance = world.instance.value
    if not instance.is_on_standby:
        raise IllegalMove(f"{instance.id} is not on its standby")
    agreed = instance.having(hand_back=True)
    app.store.commit([world.instance.becomes(agreed), event(app, instance, "hand_back", "agreed to", now), *also])
    return agreed


def request_standby(app: App, world: World, *, wanted: bool, now: datetime, also: Sequence[Write] = ()) -> Instance:
    """With or without a standby from now on. Without: it goes once what only it and the GPU have is in a snapshot."""
    instance = world.instance.value
    if instance.want is Want.GONE:
        raise IllegalMove(f"{instance.id} is being terminated")
    spec = instance.spec.model_copy(update={"standby": wanted})
    wished = instance.having(spec=spec, standby_tries=0, standby_not_before=None)
    text = "asked for a standby" if wanted else "asked to do without a standby"
    app.store.commit([world.instance.becomes(wished), event(app, instance, "standby", text, now), *also])
    return wished


def _shown(instance: Instance) -> str:
    return "unprotected" if instance.standby is None else "not in sync yet"
