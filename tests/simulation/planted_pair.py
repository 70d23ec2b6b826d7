"""Planted bugs of the pair: what a hurried hand might have written of a GPU and its standby."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common.domain import standby as rules
from common.domain.host import ClaimReport, HostPhase
from common.domain.instance import Conflict, Phase
from common.domain.reliability import Outcome
from common.domain.rental import RentalState
from common.domain.role import Claim
from common.domain.version import Version
from common.ports import App
from common.records import Kept, World, event, load
from common.workflows.history import ends, retire

FAR_AHEAD = 1_000_000


def says(what: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A property that says this instead."""
    return lambda _original: property(what)


# --- whose word counts


def claim_of_any_epoch(_original: Any) -> Any:
    def may_take_over(instance: Any, claim: Any) -> bool:
        writes = instance.writer is not None and not instance.is_on_standby
        return claim is not None and writes and instance.phase in (Phase.UP, Phase.FREEZING)

    return may_take_over


def appointed_by_control(original: Any) -> Any:
    """The GPU is lost: its standby shall write, whatever it says."""

    def take_over(app: App, world: World, now: Any) -> bool:
        instance, writer = world.instance.value, world.writer
        kept = world.hosts.get(instance.mirror or "")
        if writer and kept and writer.value.state is RentalState.LOST and kept.value.claim is None:
            claim = ClaimReport(epoch=instance.epoch, version_epoch=instance.epoch, version_seq=FAR_AHEAD)
            said = Kept(kept.doc, kept.value.model_copy(update={"claim": claim}))
            world = replace(world, hosts={**world.hosts, kept.value.label: said})
        return bool(original(app, world, now))

    return take_over


def claims_too_much(_original: Any) -> Any:
    def claim(role: Any) -> Claim | None:
        if role.sealed is None:
            return None
        return Claim(epoch=role.sealed, version=Version(epoch=role.sealed, seq=role.version.seq + FAR_AHEAD))

    return property(claim)


def takes_after_the_seal(_original: Any) -> Any:
    def may_take(role: Any, epoch: int, label: str) -> bool:
        return (epoch, label) == (role.view.epoch, role.view.writer) and label != role.label

    return may_take


def takes_over_its_branch(_original: Any) -> Any:
    """What was written on a standby that sealed in vain is nobody's."""

    def may_take(role: Any, epoch: int, label: str) -> bool:
        is_free = role.sealed is None and not role.is_filling
        return is_free and (epoch, label) == (role.view.epoch, role.view.writer) and label != role.label

    return may_take


def takes_from_anybody(_original: Any) -> Any:
    return lambda role, _epoch, label: role.sealed is None and label != role.label


def hears_older_words(_original: Any) -> Any:
    def heard(role: Any, view: Any) -> Any:
        is_over = role.sealed is not None and view.epoch > role.sealed
        return replace(role, view=view, sealed=None if is_over else role.sealed)

    return heard


def counts_in_any_epoch(_original: Any) -> Any:
    def may_count(instance: Any, report: Any) -> bool:
        version = Version(epoch=report.epoch, seq=report.seq)
        return instance.pointer is None or version != instance.pointer.version

    return may_count


def begins_with_what_it_has(original: Any) -> Any:
    """Nothing is restored."""
    return lambda instance, result, **more: original(instance, result, **more).having(start="keep")


def guarded_by_the_dead(_original: Any) -> Any:
    """Nobody asks whether the mirror still lives."""
    return lambda world: world.instance.value.is_on_standby or world.instance.value.mirror is not None


# --- what only a fenced machine has


def believed(_original: Any) -> Any:
    """Nobody looks into the bucket."""
    return lambda _app, _world, report, epoch: Conflict(
        epoch=epoch, manifest_key=report.manifest_key, files=report.files, bytes=report.bytes
    )


# --- what is let go


def old_gpu_retired(original: Any) -> Any:
    """At the take-over, with what only it and the standby have."""

    def take_over(app: App, world: World, now: Any) -> bool:
        if not original(app, world, now):
            return False
        after = load(app, world.instance.value.key)
        kept = after.rental(after.instance.value.held)
        if kept:
            free = after.instance.becomes(after.instance.value.having(held=None))
            app.store.commit([*retire(app, ends([kept], Outcome.CANCELLED, "taken over from"), now), free])
        return True

    return take_over


def held_let_go_uncovered(original: Any) -> Any:
    def drop_lost_held(app: App, world: World, now: Any) -> bool:
        kept = world.rental(world.instance.value.held)
        if kept is None or kept.value.state is not RentalState.HELD:
            return bool(original(app, world, now))
        free = world.instance.becomes(world.instance.value.having(held=None))
        app.store.commit([*retire(app, ends([kept], Outcome.CANCELLED, "not needed"), now), free])
        return True

    return drop_lost_held


def candidate_kept(original: Any) -> Any:
    """The standby dies: the candidate goes on with what it has."""

    def restart(app: App, world: World, now: Any) -> bool:
        instance = world.instance.value
        lost = instance.is_on_standby and rules.is_lost(world.standby.value if world.standby else None)
        candidate = world.rental(instance.cand)
        if not lost or candidate is None or candidate.value.state is not RentalState.SERVING:
            return bool(original(app, world, now))
        up = instance.to(Phase.UP, at=now).having(
            epoch=instance.epoch + 1, writer=instance.cand, cand=None, mirror=None, start="keep", fz=None
        )
        line = event(app, instance, "lost", "going on with the candidate", now)
        app.store.commit([candidate.unchanged(), world.instance.becomes(up), line])
        return True

    return restart


def drained_at_once(_original: Any) -> Any:
    """The mirror is detached without a snapshot of what only it and the GPU have."""

    def drain(app: App, world: World, now: Any) -> bool:
        instance, kept = world.instance.value, world.standby
        is_gone = rules.is_lost(kept.value if kept else None)
        if instance.mirror is None or instance.is_on_standby or (not is_gone and instance.spec.standby):
            return False
        detached = instance.having(mirror=None)
        app.store.commit([world.instance.becomes(detached), event(app, instance, "standby", "detached", now)])
        return True

    return drain


def drained_in_the_same_epoch(original: Any) -> Any:
    class Same:
        """An instance whose epoch stays."""

        def __init__(self, world: World) -> None:
            self._world = world

        def becomes(self, value: Any) -> Any:
            return self._world.instance.becomes(value.having(epoch=self._world.instance.value.epoch))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._world.instance, name)

    return lambda app, world, now: original(app, replace(world, instance=Same(world)), now)


def let_go_at_once(original: Any) -> Any:
    """Of a mirror, too."""

    def let_go(app: App, world: World, now: Any) -> bool:
        instance, kept = world.instance.value, world.standby
        if kept is None or instance.spec.standby or instance.is_on_standby:
            return bool(original(app, world, now))
        free = instance.having(standby=None, mirror=None, door=None, drain=None, tunnel_keys={})
        writes = retire(app, ends([kept], Outcome.CANCELLED, "not wanted"), now)
        app.store.commit([*writes, world.instance.becomes(free)])
        return True

    return let_go


# --- the way back


def equal_without_a_freeze(_original: Any) -> Any:
    return lambda instance, standby, candidate: rules.is_copied(instance, standby, candidate)


def equal_by_the_freeze(_original: Any) -> Any:
    def is_equal(instance: Any, standby: Any, _candidate: Any) -> bool:
        return standby is not None and standby.phase is HostPhase.FROZEN and standby.fz == instance.cand

    return is_equal


def equal_with_a_backlog(_original: Any) -> Any:
    def is_equal(instance: Any, standby: Any, candidate: Any) -> bool:
        frozen = standby is not None and standby.phase is HostPhase.FROZEN and standby.fz == instance.cand
        return frozen and rules.is_copied(instance, standby, candidate)

    return is_equal


def attached_unequal(_original: Any) -> Any:
    def may_attach(instance: Any, gpu: Any, standby: Any) -> bool:
        is_free = instance.is_running and not instance.mirror and instance.drain is None
        return bool(is_free and gpu and standby and standby.phase and standby.claim is None)

    return may_attach


def another_standby(original: Any) -> Any:
    """It forgets the one that there is."""

    def plan(app: App, world: World, now: Any) -> bool:
        instance = world.instance.value
        if instance.mirror is None:
            return bool(original(app, world, now))
        forgetful = Kept(world.instance.doc, instance.having(standby=None))
        return bool(original(app, replace(world, instance=forgetful), now))

    return plan
