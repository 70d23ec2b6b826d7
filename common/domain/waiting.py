"""Buy now, or wait for a better price? One rule, and what it would have saved. Pure.

The rule: wait at most W for a price at or below the lower quartile of the last 14 days, then buy at any price. It needs
no forecast: prices that depend on which machines happen to be listed come back, and the quartile says how far.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from common.domain.model import Model
from common.domain.scores import quantile
from common.domain.series import DAY_S, Series

LOOK_BACK_S = 14 * DAY_S
CHEAP = 0.25
"""A price in this lowest share of the look-back is worth buying at once."""
MIN_SEEN = 8
"""More than half of the days of the look-back: with fewer prices nothing is known about what is cheap, so buy."""


class Advice(Model):
    """Whether somebody who can wait should."""

    wait: bool
    cheap_usd_per_hour: float | None
    """Wait for this price; None = too little is known, buy."""
    max_wait_s: int
    saved_share: float | None
    """What the rule would have saved against buying at once, in the past of this series; None = no past."""
    n: int
    """Past purchases behind that."""

    def at(self, usd_per_hour: float) -> Self:
        """The same rule at another price than the newest of the series."""
        cheap = self.cheap_usd_per_hour
        return self.model_copy(update={"wait": cheap is not None and usd_per_hour > cheap})


@dataclass(frozen=True)
class Purchase:
    """One past moment at which somebody wanted a machine: prices in USD per hour."""

    tick: int
    now: float
    rule: float
    oracle: float
    """The lowest price within the wait, which only hindsight knows."""
    blind: float
    """The price after the full wait."""
    waited: int
    """Ticks until the rule bought."""


def advise(series: Series, max_wait: int) -> Advice:
    """For somebody who wants a machine at the newest tick and can wait `max_wait` ticks."""
    cheap = cheap_prices(series)
    past = backtest(series, max_wait)
    limit = cheap[-1] if cheap else None
    return Advice(
        wait=limit is not None and series.usd[-1] > limit,
        cheap_usd_per_hour=limit,
        max_wait_s=max_wait * series.step_s,
        saved_share=saved_share(past),
        n=len(past),
    )


def backtest(series: Series, max_wait: int) -> list[Purchase]:
    """One purchase for every tick with a known quartile and a known price at the end of the wait."""
    where = {tick: i for i, tick in enumerate(series.ticks)}
    bought = []
    for i, limit in enumerate(cheap_prices(series)):
        end = where.get(series.ticks[i] + max_wait)
        if limit is not None and end is not None:
            bought.append(_buy(series, i, end, limit))
    return bought


def saved_share(purchases: Sequence[Purchase]) -> float | None:
    """What the rule saved of what buying at once cost, in money; None without purchases."""
    now = sum(p.now for p in purchases)
    return 1 - sum(p.rule for p in purchases) / now if now else None


def possible_share(purchases: Sequence[Purchase]) -> float | None:
    """The same for hindsight: the most that any rule can save."""
    now = sum(p.now for p in purchases)
    return 1 - sum(p.oracle for p in purchases) / now if now else None


def gap_closed(purchases: Sequence[Purchase]) -> float | None:
    """(buy now - rule) / (buy now - oracle) in money; None where there was nothing to save."""
    possible = sum(p.now - p.oracle for p in purchases)
    return sum(p.now - p.rule for p in purchases) / possible if possible > 0 else None


def cheap_prices(series: Series) -> list[float | None]:
    """At each tick the lower quartile of the look-back, this tick's price included; None with fewer than MIN_SEEN."""
    window: list[float] = []
    oldest = 0
    found: list[float | None] = []
    for tick, usd in zip(series.ticks, series.usd, strict=True):
        insort(window, usd)
        while (tick - series.ticks[oldest]) * series.step_s >= LOOK_BACK_S:
            del window[bisect_left(window, series.usd[oldest])]
            oldest += 1
        found.append(quantile(window, CHEAP) if len(window) >= MIN_SEEN else None)
    return found


def _buy(series: Series, start: int, end: int, limit: float) -> Purchase:
    """The first price at or below the limit, else the last one; ticks that nobody saw cannot be bought at."""
    ahead = series.usd[start : end + 1]
    chosen = next((i for i, usd in enumerate(ahead) if usd <= limit), len(ahead) - 1)
    waited = series.ticks[start + chosen] - series.ticks[start]
    return Purchase(series.ticks[start], ahead[0], ahead[chosen], min(ahead), ahead[-1], waited)
