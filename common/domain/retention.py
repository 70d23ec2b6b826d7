"""Which snapshots are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field


class Retention(BaseModel):
    """How many of each kind stay. A snapshot stays when any of the four wants it."""

    model_config = ConfigDict(frozen=True)

    last: int = Field(default=12, ge=1)
    """The newest ones; never fewer than one."""
    hourly: int = Field(default=24, ge=0)
    """The newest of each of so many hours that have one."""
    daily: int = Field(default=7, ge=0)
    weekly: int = Field(default=4, ge=0)


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
