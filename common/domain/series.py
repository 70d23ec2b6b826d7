"""Prices over time on an even grid, as they were seen: a gap stays a gap. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HOUR_S = 3_600
DAY_S = 86_400
DAILY_FROM_S = 20 * HOUR_S
"""Points that lie this far apart (in the median) are one a day; closer ones are put on the hour."""
MAX_USD_PER_HOUR = 10_000.0
"""No machine costs this much: such a number is a broken record."""


@dataclass(frozen=True)
class Series:
    """One price per tick, `step_s` apart; tick n begins at n * step_s seconds after 1970. Missing ticks are gaps.

    Prices are floats here: they are observations to learn from, never amounts to bill.
    """

    step_s: int
    ticks: tuple[int, ...]
    """In rising order."""
    usd: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def moving_share(self) -> float:
        """Share of the steps between neighbouring ticks in which the price changed; 0 when there is no such step."""
        near = [i for i in range(1, len(self)) if self.ticks[i] == self.ticks[i - 1] + 1]
        moved = sum(self.usd[i] != self.usd[i - 1] for i in near)
        return moved / len(near) if near else 0.0

    def until(self, tick: int) -> Series:
        """What was known when `tick` was seen."""
        known = sum(t <= tick for t in self.ticks)
        return Series(self.step_s, self.ticks[:known], self.usd[:known])


def is_price(usd: float) -> bool:
    """Could a machine cost this per hour?"""
    return math.isfinite(usd) and 0 < usd <= MAX_USD_PER_HOUR


def gridded(points: Iterable[tuple[float, float]], step_s: int | None = None) -> Series:
    """A series from (seconds since 1970, USD per hour) in any order; what `is_price` refuses is left out.

    Each tick has the last price seen in it, the lowest of those seen at that same moment. Without `step_s` the
    points say themselves whether they are daily or hourly.
    """
    ordered = sorted({(at, usd) for at, usd in points if is_price(usd)}, key=lambda point: (point[0], -point[1]))
    step = step_s or step_of([at for at, _ in ordered])
    last = {math.floor(at / step): usd for at, usd in ordered}
    return Series(step, tuple(last), tuple(last.values()))


def step_of(times: Sequence[float]) -> int:
    """A day or an hour, by the median distance of distinct neighbouring times, which are in rising order."""
    distances = sorted(later - at for at, later in itertools.pairwise(times) if later > at)
    return DAY_S if distances and distances[len(distances) // 2] >= DAILY_FROM_S else HOUR_S
