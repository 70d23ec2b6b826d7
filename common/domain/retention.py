"""Which snapshots are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta

from pydantic import ConfigDict, Field

from common.domain.model import Model
from common.domain.snapshot import SnapshotRecord
from common.domain.version import Version

DAMAGED_KEPT_FOR = timedelta(days=30)
"""A damaged snapshot stays so long after it was taken: parts of it may be what somebody misses."""


class Retention(Model):
    """How many of each kind stay. A snapshot stays when any of the four wants it."""

    model_config = ConfigDict(extra="forbid")

    last: int = Field(default=12, ge=1, le=1000)
    """The newest ones; never fewer than one."""
    hourly: int = Field(default=24, ge=0, le=1000)
    """The newest of each of so many hours that have one."""
    daily: int = Field(default=7, ge=0, le=1000)
    weekly: int = Field(default=4, ge=0, le=1000)


def kept(taken_at: Mapping[str, datetime], retention: Retention) -> set[str]:
    """Names of the snapshots that stay. Periods are counted by what there is, not by the calendar: a workspace that
    slept for a month keeps its old hours."""
    newest_first = sorted(taken_at, key=lambda name: (taken_at[name], name), reverse=True)
    stay = set(newest_first[: retention.last])
    periods: tuple[tuple[int, Callable[[datetime], object]], ...] = (
        (retention.hourly, lambda at: (at.date(), at.hour)),
        (retention.daily, lambda at: at.date()),
        (retention.weekly, lambda at: at.isocalendar()[:2]),
    )
    for many, period in periods:
        first_of: dict[object, str] = {}
        for name in newest_first:
            first_of.setdefault(period(taken_at[name]), name)
        stay |= set(list(first_of.values())[:many])
    return stay


def outdated(
    records: Collection[SnapshotRecord], *, in_use: Collection[str], retention: Retention, now: datetime
) -> set[str]:
    """Ids of the records that may be given up: never one `in_use`, whatever the retention says.

    Damaged ones take nobody's place: the sound ones are counted without them. Where none is sound, all of them stay.
    """
    sound = {record.id: record.taken_at for record in records if record.damaged is None}
    if not sound:
        return set()
    rotten = {record.id for record in records if record.damaged and now - record.taken_at >= DAMAGED_KEPT_FOR}
    return (set(sound) - kept(sound, retention) | rotten) - set(in_use)


def may_still_count(version: Version, *, epoch: int, pointer: tuple[int, Version] | None) -> bool:
    """May a manifest that no record names yet become the pointer? `version` = as its name says; `epoch` = the record's.

    A report counts in the record's own epoch alone, and only when it is newer than the pointer (rule P2).
    """
    if version.epoch != epoch:
        return version.epoch > epoch
    return pointer is None or (version.epoch, version) > pointer
