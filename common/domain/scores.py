"""How good a forecast was: quantiles, the usual scores, and how far a measured number can be trusted. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

BOOTSTRAP_ROUNDS = 400
"""Resamples behind one interval: its ends then move by about a tenth of its width from seed to seed."""

REFIT_GROWTH = 1.05
"""Sorting at every new value would make long series slow; a twentieth more values move no quantile."""

Draw = Callable[[int], int]
"""draw(n) = a random integer of 0..n-1: chance comes from the edge."""
Unit = TypeVar("Unit")


class Sample:
    """Values that keep coming; their quantiles are taken anew whenever there are REFIT_GROWTH times as many."""

    def __init__(self) -> None:
        self._ordered: list[float] = []
        self._fresh: list[float] = []

    def __len__(self) -> int:
        return len(self._ordered) + len(self._fresh)

    def add(self, value: float) -> None:
        self._fresh.append(value)
        if len(self) >= len(self._ordered) * REFIT_GROWTH:
            self._ordered = sorted(self._ordered + self._fresh)
            self._fresh = []

    def quantile(self, share: float) -> float:
        """Of at least one value."""
        return quantile(self._ordered, share)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of values in rising order, at least one of them; linear between neighbours (type 7 of Hyndman and Fan)."""
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def pinball(actual: float, forecast: float, share: float) -> float:
    """The loss that the `share` quantile minimises."""
    over = actual - forecast
    return over * share if over >= 0 else over * (share - 1)


def brier(scored: Sequence[tuple[float, bool]]) -> float:
    """Mean squared error of probabilities against what happened."""
    return sum((chance - happened) ** 2 for chance, happened in scored) / len(scored)


def auc(scored: Sequence[tuple[float, bool]]) -> float | None:
    """Chance that one that happened was given more than one that did not, ties half; None if all ended alike."""
    good = [chance for chance, happened in scored if happened]
    bad = sorted(chance for chance, happened in scored if not happened)
    if not good or not bad:
        return None
    return sum(bisect_left(bad, chance) + bisect_right(bad, chance) for chance in good) / (2 * len(good) * len(bad))


def interval95(
    units: Sequence[Unit], statistic: Callable[[Sequence[Unit]], float | None], draw: Draw
) -> tuple[float, float] | None:  # fmt: skip
    """A 95 % bootstrap interval: whole units (series, pods, blocks of days) are drawn with repetition.

    None with fewer than two units, or when the statistic was defined in none of the rounds.
    """
    return intervals95(units, lambda some: {"": statistic(some)}, draw).get("")


def intervals95(
    units: Sequence[Unit], statistics: Callable[[Sequence[Unit]], Mapping[str, float | None]], draw: Draw
) -> dict[str, tuple[float, float]]:
    """The intervals of several statistics from the same resamples; one that cannot be given is missing."""
    found: dict[str, list[float]] = {}
    for _ in range(BOOTSTRAP_ROUNDS if len(units) > 1 else 0):
        for name, value in statistics([units[draw(len(units))] for _ in units]).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {
        name: (quantile(ordered, 0.025), quantile(ordered, 0.975))
        for name, ordered in ((name, sorted(values)) for name, values in found.items())
    }
