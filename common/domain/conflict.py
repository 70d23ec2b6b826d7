"""What a fenced machine alone had: kept apart, brought to the writer as `conflicts/<epoch>`, never mixed in. Pure.

A machine is fenced when the role goes elsewhere while it may still live: a GPU that fell silent, or a standby that
sealed in vain and was worked on meanwhile. What it has and nobody else is uploaded by itself as a snapshot of just
that, and laid beside the writer's files: two versions are for people to compare.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from common.domain.host import (
    SAVE_TRIES,
    HostRecord,
    Order,
    OrderResult,
    epoch_of_save,
    is_last_save,
    number_of_save,
    save_id,
)
from common.domain.instance import Conflict, Instance
from common.domain.rental import Rental, RentalState

SAVE_MAX_S = 600.0
"""A held machine that answers is kept no longer for what it alone has: it bills."""


def unsaved(instance: Instance, label: str, host: HostRecord | None) -> int | None:
    """The epoch of which this machine may alone have something, and has not said what; None = it has nothing to say."""
    if label == instance.held and instance.conflicts_of < instance.fenced:
        return instance.fenced
    refused = host.refused if host and label == instance.standby else None
    return refused if refused is not None and instance.refusals_of < refused else None


def save_order(instance: Instance, label: str, host: HostRecord | None) -> Order | None:
    """To a machine that may alone have something. `anew`: the save before did not come about or did not stand up to its
    verification, perhaps for what `previous` counts on; so nothing is counted on. `mirrored`: what its standby has
    confirmed lives on there. One that did not take over is filled from the snapshot again, whatever it has."""
    epoch = unsaved(instance, label, host)
    if epoch is None:
        return None
    last = host.progress.last if host else None
    said = number_of_save(last) + (not last.ok) if last and epoch_of_save(last) == epoch else 0
    tries = max(said, _tries_of(instance, label))
    if tries >= SAVE_TRIES:
        return None
    previous = instance.pointer.manifest_key if instance.pointer else None
    args = {"previous": previous, "anew": tries > 0, "of": epoch, "max_s": SAVE_MAX_S}
    args["mirrored"] = label == instance.held and instance.is_taken_over
    return Order(id=save_id(epoch, tries), kind="save", args=args)


def saved(instance: Instance, label: str, host: HostRecord | None) -> OrderResult | None:
    """How a save ended for good, done or failed for the last time, that the record does not know of yet, or None."""
    last = host.progress.last if host else None
    epoch = epoch_of_save(last) if last else None
    if last is None or epoch is None or not is_last_save(last, epoch):
        return None
    is_held = label == instance.held and epoch == instance.fenced > instance.conflicts_of
    is_refused = label == instance.standby and epoch > instance.refusals_of
    is_open = is_held or is_refused
    return last if is_open and number_of_save(last) >= _tries_of(instance, label) else None


def _tries_of(instance: Instance, label: str) -> int:
    """How often what it saved did not stand up to its verification."""
    return instance.save_tries if label == instance.held else instance.refusal_tries


def epochs_being_saved(instance: Instance, hosts: Iterable[HostRecord]) -> set[int]:
    """Of which a snapshot apart may be in the bucket that is not judged yet. `hosts` = of its machines."""
    epochs = {instance.fenced} if instance.held is not None else set()
    for host in hosts:
        if host.label != instance.standby:
            continue
        said = epoch_of_save(host.progress.last) if host.progress.last else None
        epochs |= {epoch for epoch in (host.refused, said) if epoch is not None and epoch > instance.refusals_of}
    return epochs


def is_awaited(
    instance: Instance, held: Rental | None, host: HostRecord | None, *, silent_after_s: float, now: datetime
) -> bool:
    """The held machine answers and has not said yet what it alone has: it is kept, for a bounded time."""
    if held is None or held.state is not RentalState.HELD or host is None:
        return False
    answers = host.silent_for_s(now) <= silent_after_s
    is_open = unsaved(instance, held.label, host) is not None
    return is_open and answers and (now - held.at).total_seconds() <= SAVE_MAX_S


def not_in(instance: Instance) -> tuple[Conflict, ...]:
    """What is still kept apart once the snapshot that is judged now has become the pointer.

    That one may have been taken before something was brought; the one after it was not.
    """
    attempt = instance.snapshot_attempt
    return tuple(each for each in instance.conflicts if each.brought is None or each.brought >= attempt)


def name_of(epoch: int, *, of_standby: bool) -> str:
    """A GPU that fell silent and its standby that sealed in vain may both have something of one epoch."""
    return f"{epoch}-standby" if of_standby else str(epoch)
