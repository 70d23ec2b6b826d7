"""What an evaluation found: the numbers, each with how much stands behind it, and the bounds they have to meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from common.domain.scores import Draw, interval95

Unit = TypeVar("Unit")
Interval = tuple[float, float] | None
DIGITS = 4
ENOUGH = 100
"""A bound applies only where at least so many forecasts, purchases or hours stand behind the number."""
CLOCKED_FROM_S = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
WHOLE = 1e-9
"""Sums that differ by less are equal."""


@dataclass(frozen=True)
class Measured:
    """One number: its value, its 95 % interval over whole series, pods or blocks of days, and n of what it is made."""

    value: float | None
    interval: Interval
    n: int

    def shown(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        return {"value": _short(self.value), "low95": _short(low), "high95": _short(high), "n": self.n}


@dataclass(frozen=True)
class Bound:
    """One demand on a measured number."""

    name: str
    sense: Literal["at most", "at least", "within"]
    bound: float | tuple[float, float]
    measured: Measured

    @property
    def ok(self) -> bool:
        value = self.measured.value
        if value is None:
            return False
        if isinstance(self.bound, tuple):
            return self.bound[0] - WHOLE <= value <= self.bound[1] + WHOLE
        return value <= self.bound + WHOLE if self.sense == "at most" else value >= self.bound - WHOLE

    def shown(self) -> dict[str, Any]:
        low, high = self.measured.interval or (None, None)
        return {
            "name": self.name,
            "sense": self.sense,
            "bound": _short(self.bound) if isinstance(self.bound, float) else [*self.bound],
            "measured": _short(self.measured.value),
            "low95": _short(low),
            "high95": _short(high),
            "n": self.measured.n,
            "ok": self.ok,
        }


@dataclass
class Evaluation:
    """Everything one `dumont evaluate` says."""

    what: str
    data: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)


def measured(
    units: Sequence[Unit], statistic: Callable[[Sequence[Unit]], float | None], draw: Draw, n: int
) -> Measured:
    """The statistic over all units, with its bootstrap interval."""
    return Measured(statistic(units) if units else None, interval95(units, statistic, draw), n)


def span(times: Iterable[float]) -> dict[str, Any]:
    """first, last (ISO, UTC) and days of seconds since 1970; traces without a clock begin at 0 and have only days."""
    known = list(times)
    if not known:
        return {"first": None, "last": None, "span_days": 0.0}
    first, last = min(known), max(known)
    shown = [_time(at) if first >= CLOCKED_FROM_S else None for at in (first, last)]
    return {"first": shown[0], "last": shown[1], "span_days": round((last - first) / 86_400, 2)}


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes")


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
