"""In which time no GPU was billed because an instance was hibernated. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from common.domain.rental import Rental

Span = tuple[datetime, datetime]


def hibernated(rentals: Sequence[Rental], *, since: datetime, until: datetime) -> list[Span]:
    """Spans of [since, until] without any GPU of the instance, each begun by letting a sound one go.

    The wait for a first GPU, and for the one after an interruption, is no saving. `rentals` = all it ever had; its
    standby bills on meanwhile, as the spending tells.
    """
    spans: list[Span] = []
    last_end: datetime | None = None
    was_sound = False
    gpus = [rental for rental in rentals if rental.meter.disk_from and not rental.is_standby]
    for start, end, is_sound in sorted(_billed(rental, until) for rental in gpus):
        if last_end and start > last_end and was_sound:
            spans.append((last_end, start))
        if last_end is None or end >= last_end:
            last_end, was_sound = end, is_sound
    if last_end and was_sound:
        spans.append((last_end, until))
    clipped = [(max(start, since), min(end, until)) for start, end in spans]
    return [(start, end) for start, end in clipped if end > start]


def _billed(rental: Rental, until: datetime) -> tuple[datetime, datetime, bool]:
    """From when to when the instance paid for it, and whether it served to its end and was let go."""
    start = rental.meter.disk_from
    assert start
    paid_from = max(start, rental.assigned_at) if rental.assigned_at else start
    is_sound = rental.loss is None and rental.ready_at is not None and not rental.was_held
    return paid_from, rental.meter.disk_until or until, is_sound
