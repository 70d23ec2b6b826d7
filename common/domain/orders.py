"""What a host is told: derived from the record alone, so that the same record always gives the same orders."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from common.domain.bring import bring_order, waiting
from common.domain.conflict import save_order
from common.domain.host import HostPhase, HostRecord, Order, OrderResult, Wanted
from common.domain.instance import Instance, Phase, Want
from common.domain.rental import POOL, Rental, RentalState
from common.domain.snapshot import is_due
from common.domain.standby import is_behind
from common.domain.version import Version


def wanted_of(instance: Instance | None, rental: Rental) -> Wanted:
    """The phase the record wants of this rental's host."""
    if not rental.is_live:
        return Wanted.STOP
    if instance is None:
        return Wanted.WAIT if rental.account == POOL else Wanted.STOP
    if instance.serves(rental.label):
        return Wanted.FREEZE if instance.phase in (Phase.FREEZING, Phase.HANDOVER) else Wanted.SERVE
    return Wanted.HOLD if rental.state is RentalState.HELD else Wanted.WAIT


COPY_FAILED = "copy-"
"""How the id of an order to fill a candidate begins."""
REWIND_TRIES = 3
"""Of a standby that lacks what the pointer holds; after them a GPU restores the pointer, which has all of both."""
HURRY_TIMES = 10
"""Snapshots that are less than so many settled heartbeats apart are reported as soon as they are there."""


def orders_of(
    instance: Instance,
    label: str,
    phase: HostPhase | None,
    *,
    snapshot_every_s: float,
    settled_s: float,
    now: datetime,
    host: HostRecord | None = None,
) -> list[Order]:
    """Level-triggered: an order stands until the record shows that it was carried out (or judged and retired).

    `phase` = what the rental's host says it is doing, `host` = all that it said, where that was read. A snapshot of a
    host that
    serves is reported in its turn, with the heartbeat `settled_s` later, and taken so much earlier: what is lost at
    most is `snapshot_every_s`.
    """
    if not instance.serves(label):
        save = save_order(instance, label, host)
        return [save] if save else _pair_orders(instance, label, host)
    if instance.started_epoch < instance.epoch:
        if instance.start == "keep":
            return [Order(id=keep_id(instance), kind="keep")]
        key = instance.pointer.manifest_key if instance.pointer else None
        seq = instance.pointer.version.seq if instance.pointer else 0
        # a machine of the pool was created before anybody knew whose it would be
        written = instance.pointer.version.epoch if instance.pointer else 0
        args = {"manifest_key": key, "epoch": written, "seq": seq, "ssh_public_key": instance.spec.ssh_public_key}
        return [Order(id=restore_id(instance), kind="restore", args=args)]
    if instance.snapshot_not_before and now < instance.snapshot_not_before:
        return []
    if instance.phase is Phase.FREEZING:
        return [Order(id=snapshot_id(instance), kind="snapshot", args=_snapshot_args(instance))]
    is_waited_for = (instance.held is not None or instance.drain == "going") and not instance.is_covered
    if is_waited_for and phase is HostPhase.SERVING:
        return [Order(id=snapshot_id(instance), kind="snapshot", args=_snapshot_args(instance))]
    last_at = instance.snapshot_due_from
    has_time = snapshot_every_s >= HURRY_TIMES * settled_s
    after_s = snapshot_every_s - settled_s if has_time else snapshot_every_s
    if phase is HostPhase.SERVING and last_at and is_due(last_at, after_s, now):
        args = _snapshot_args(instance, may_repack=True)
        return [Order(id=snapshot_id(instance), kind="snapshot", args=args, hurry=not has_time)]
    bring = bring_order(instance) if phase is HostPhase.SERVING else None
    return [bring] if bring else []


def _pair_orders(instance: Instance, label: str, host: HostRecord | None) -> list[Order]:
    """To a candidate: what the pointer holds, once that is the standby's own. To a claimant that lacks some: that."""
    pointer, claim, last = instance.pointer, host.claim if host else None, host.progress.last if host else None
    if pointer is None:
        return []
    args = {"manifest_key": pointer.manifest_key, "epoch": pointer.version.epoch, "seq": pointer.version.seq}
    if label == instance.cand and instance.phase is Phase.STANDBY and instance.is_covered:
        args["ssh_public_key"] = instance.spec.ssh_public_key
        return [Order(id=f"{COPY_FAILED}{instance.epoch}-{pointer.taken_epoch}", kind="copy", args=args)]
    is_claimant = label == instance.standby and claim is not None and claim.epoch == instance.epoch
    if is_claimant and claim is not None and is_behind(instance, claim):
        tries = _rewind_tries(instance, last)
        return [Order(id=_rewind_id(instance, tries), kind="rewind", args=args)] if tries < REWIND_TRIES else []
    return []


def _rewind_id(instance: Instance, tries: int) -> str:
    """A host tries an order only once, so that each try has an id of its own."""
    version = instance.pointer.version if instance.pointer else Version(epoch=0, seq=0)
    return f"rewind-{instance.epoch}-{version.epoch}-{version.seq}-{tries}"


def _rewind_tries(instance: Instance, last: OrderResult | None) -> int:
    """How often it failed, as the claimant's last result says; between two tries it has no other order."""
    failed = last.id if last and not last.ok else None
    return next((tries + 1 for tries in range(REWIND_TRIES) if failed == _rewind_id(instance, tries)), 0)


def is_rewind_failed(instance: Instance, standby: HostRecord | None) -> bool:
    """The standby cannot get what it lacks: the pointer holds more than it has."""
    claim = standby.claim if standby else None
    lacks = claim is not None and claim.epoch == instance.epoch and is_behind(instance, claim)
    return lacks and standby is not None and _rewind_tries(instance, standby.progress.last) >= REWIND_TRIES


def _snapshot_args(instance: Instance, *, may_repack: bool = False) -> dict[str, Any]:
    """`previous`: what the newest verified snapshot holds already need not be stored again.

    After a failure nothing is taken for stored: what the snapshot before left in the bucket may be what is wrong. A
    snapshot that somebody waits for repacks nothing.
    """
    pointer = instance.pointer if not instance.snapshot_failures else None
    spec = instance.spec
    caps = {"max_cpus": spec.snapshot_max_cpus, "max_mbit_s": spec.snapshot_max_mbit_s, "freeze": spec.snapshot_freeze}
    repacks = may_repack and pointer is not None and pointer.wants_repacking
    return {"fz": instance.fz, "previous": pointer and pointer.manifest_key, "repacks": repacks, **caps}


def keep_id(instance: Instance) -> str:
    return f"keep-{instance.epoch}"


def restore_id(instance: Instance) -> str:
    return f"restore-{instance.epoch}"


def snapshot_id(instance: Instance) -> str:
    """A new id after every judged report or failure and for every freeze: no older order's answer is taken for its."""
    return f"snapshot-{instance.epoch}-{instance.snapshot_attempt}-{instance.fz or 'live'}"


def is_settled(instance: Instance, label: str, phase: HostPhase | None) -> bool:
    """It serves, or mirrors, and is meant to."""
    if not instance.is_running or instance.want is not Want.UP or instance.is_pairing:
        return False
    if waiting(instance):
        return False
    return (instance.serves(label) and phase is HostPhase.SERVING) or label == instance.mirror


def failed_snapshot(instance: Instance, host: HostRecord | None) -> OrderResult | None:
    """How the snapshot order that stands failed on the writer, if it did: a host tries an order only once."""
    result = host.progress.last if host else None
    return result if result and not result.ok and result.id == snapshot_id(instance) else None


def failed_restore(instance: Instance, host: HostRecord | None) -> OrderResult | None:
    """How the restore of the present epoch failed on the writer, if it did."""
    result = host.progress.last if host else None
    waiting = instance.phase is Phase.UP and instance.started_epoch < instance.epoch
    return result if waiting and result and not result.ok and result.id == restore_id(instance) else None
