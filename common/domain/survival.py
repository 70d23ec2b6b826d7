"""Will this machine still be there in an hour? Pure.

A logistic regression on what its place has done: how long it has been up, how often it was available lately, how its
neighbours fare, and above all how often it has survived so far, which begins at the common rate of all places and
moves to its own as its history grows. A place without a history is therefore given the base rate of a young machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate
from typing import NamedTuple, Self

from pydantic import model_validator

from common.domain import logistic
from common.domain.model import Model

FEATURES: Mapping[str, float] = {
    "log_age": 1.0,
    "own_survival": 1.0,
    "available_1h": 1.0,
    "available_6h": 1.0,
    "same_hours": 10.0,
    "available_24h": 100.0,
    "region_available": 100.0,
    "others_available": 100.0,
    "flips_24h": 100.0,
}
"""Each with its penalty, in independent windows: what a short history cannot prove of the context is not believed."""
OWN_SURVIVAL = 1
"""Its place in FEATURES: the log-odds of the share of past windows that were survived."""
PRIOR_H = 6.0
"""Hours up after which a place's own survival counts as much as the common one."""
YOUNG_H = 0.25
"""log_age = log(hours up + this): a quarter of an hour more matters to a young machine only."""
UNSEEN = 0.5
"""Availability where nobody looked."""
SAME_HOURS_DAYS = 7
"""same_hours = availability in the hours of the day that the horizon covers, on so many past days."""
MAX_FIT_ROWS = 6_000
"""Rows beyond this are thinned evenly: they are the same windows again."""
HORIZONS_H = (1, 4, 6)


@dataclass(frozen=True)
class Place:
    """Where one kind of machine was or was not to be had: one look every `step_s`, all places on the same clock."""

    name: str
    region: str
    """Empty when unknown; then it has no neighbours."""
    step_s: float
    first: int
    """Tick of the first look."""
    up: tuple[bool | None, ...]
    """None = nobody looked."""


class Row(NamedTuple):
    """One look at a place that was up, and whether it stayed up for the whole horizon."""

    place: str
    tick: int
    features: tuple[float, ...]
    """In the order of FEATURES."""
    survived: bool | None
    """None = not known: a gap, or the future."""


class Hazard(Model):
    """Fitted coefficients for one horizon, with what they were fitted on; in the order of FEATURES."""

    horizon_h: int
    intercept: float
    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    base_rate: float
    """Share of all rows that survived."""
    n: int

    def chance(self, row: Row) -> float:
        """That the machine outlives the horizon, 0 to 1."""
        return logistic.Fit(self.intercept, self.weights, self.means, self.deviations).chance(row.features)


class Coefficients(Model):
    """The file that `dumont evaluate survival --fit` writes."""

    fitted_on: str
    fitted_at: str
    features: tuple[str, ...]
    models: tuple[Hazard, ...]

    @model_validator(mode="after")
    def _of_these_features(self) -> Self:
        if self.features != tuple(FEATURES):
            raise ValueError(f"fitted on other features; this version has {', '.join(FEATURES)}")
        return self

    def model(self, horizon_h: int) -> Hazard:
        """Raises KeyError for a horizon that was not fitted."""
        return {model.horizon_h: model for model in self.models}[horizon_h]


@cache
def shipped() -> Coefficients:
    """The coefficients that come with this version, until a deployment has fitted its own."""
    text = resources.files("common.domain").joinpath("coefficients.json").read_text()
    return Coefficients.model_validate(json.loads(text))


def newest(places: Sequence[Place], model: Hazard) -> dict[str, float]:
    """For each place that is up at the newest tick of them all, the chance that it outlives the model's horizon.

    The common rate that short histories begin with is the model's own where these places have none.
    """
    latest = max((place.first + len(place.up) - 1 for place in places), default=0)
    found = rows(places, model.horizon_h, base_rate=model.base_rate, since=latest)
    return {row.place: model.chance(row) for row in found}


def fit(train: Sequence[Row], *, horizon_h: int, step_s: float) -> Hazard:
    """Raises ValueError without a row whose end is known."""
    known = [row for row in train if row.survived is not None]
    stride = max(1, math.ceil(len(known) / MAX_FIT_ROWS))
    used = known[::stride]
    fitted = logistic.fit(
        [row.features for row in used],
        [bool(row.survived) for row in used],
        penalties=tuple(FEATURES.values()),
        row_weight=min(1.0, stride * step_s / (horizon_h * 3600)),
    )
    return Hazard(
        horizon_h=horizon_h,
        intercept=fitted.intercept,
        weights=fitted.weights,
        means=fitted.means,
        deviations=fitted.deviations,
        base_rate=sum(bool(row.survived) for row in known) / len(known),
        n=len(known),
    )


def rows(
    places: Sequence[Place], horizon_h: float, *, base_rate: float = 0.5, since: int | None = None
) -> Iterator[Row]:  # fmt: skip
    """One row for each tick at which a place was up, place by place, knowing nothing later than that tick.

    All places share one step. `base_rate`: the common survival before any window of these places has ended, worth one
    window. `since`: only ticks from there on.
    """
    if not places:
        return
    ahead = max(1, round(horizon_h * 3600 / places[0].step_s))
    start = min(place.first for place in places)
    end = max(place.first + len(place.up) for place in places)
    counts = [_counted(place, ahead) for place in places]
    common = _common(places, counts, start, end, base_rate)
    everybody = _Crowd(places, start, end)
    regions = {name: _Crowd([p for p in places if p.region == name], start, end) for name in {p.region for p in places}}
    for place, counted in zip(places, counts, strict=True):
        near = regions[place.region] if place.region else everybody
        first = start if since is None else since
        for i in range(max(0, first - place.first), len(place.up)):
            if place.up[i]:
                at = place.first + i - start
                crowds = (near.others(place, i, at), everybody.others(place, i, at))
                yield _row(place, counted, i, ahead, common[at], crowds)


@dataclass(frozen=True)
class _Counted:
    """Running sums over one place's looks; entry i covers the looks before look i."""

    seen: list[int]
    up: list[int]
    flips: list[int]
    age: list[int]
    """Looks in a row that were up, the present one included; a gap ends the row, for nobody knows."""
    survived: list[bool | None]
    """Of the window that begins at each look."""
    ended: list[int]
    """Windows known to have ended."""
    good: list[int]
    """Of these, survived."""


def _counted(place: Place, ahead: int) -> _Counted:
    up = place.up
    age = list(accumulate(up, lambda run, is_up: run + 1 if is_up else 0, initial=0))[1:]
    known = list(accumulate((look is not None for look in up), initial=0))
    outcome: list[bool | None] = [None] * len(up)
    for i in range(len(up) - ahead):
        if up[i] and known[i + ahead + 1] - known[i] == ahead + 1:
            outcome[i] = age[i + ahead] == age[i] + ahead
    past = [*[None] * ahead, *outcome][: len(up)]
    flips = (i > 0 and None not in (up[i - 1], up[i]) and up[i - 1] != up[i] for i in range(len(up)))
    return _Counted(
        seen=known,
        up=list(accumulate((look is True for look in up), initial=0)),
        flips=list(accumulate(flips, initial=0)),
        age=age,
        survived=outcome,
        ended=list(accumulate((end is not None for end in past), initial=0)),
        good=list(accumulate((end is True for end in past), initial=0)),
    )


def _common(
    places: Sequence[Place], counts: Sequence[_Counted], start: int, end: int, base_rate: float
) -> list[float]:  # fmt: skip
    """At each tick the share of all windows that have ended by then and survived."""
    good, ended = [0] * (end - start), [0] * (end - start)
    for place, counted in zip(places, counts, strict=True):
        for i in range(len(place.up)):
            at = place.first + i - start
            good[at] += counted.good[i + 1] - counted.good[i]
            ended[at] += counted.ended[i + 1] - counted.ended[i]
    sums = zip(accumulate(good), accumulate(ended), strict=True)
    return [(survived + base_rate) / (windows + 1) for survived, windows in sums]


class _Crowd:
    """How many places were up, and looked at, at each tick."""

    def __init__(self, places: Sequence[Place], start: int, end: int) -> None:
        self.up, self.seen = [0] * (end - start), [0] * (end - start)
        for place in places:
            for at, look in enumerate(place.up, place.first - start):
                self.up[at] += look is True
                self.seen[at] += look is not None

    def others(self, place: Place, i: int, at: int) -> float:
        seen = self.seen[at] - (place.up[i] is not None)
        return (self.up[at] - (place.up[i] is True)) / seen if seen else UNSEEN


def _row(
    place: Place, counted: _Counted, i: int, ahead: int, common: float, crowds: tuple[float, float]
) -> Row:  # fmt: skip
    per_hour = 3600 / place.step_s
    prior = PRIOR_H * per_hour
    share = (counted.good[i + 1] + prior * common) / (counted.ended[i + 1] + prior)
    hours_up = counted.age[i] / per_hour

    def available(hours: float) -> float:
        first = max(0, i + 1 - max(1, round(hours * per_hour)))
        return (counted.up[i + 1] - counted.up[first]) / (counted.seen[i + 1] - counted.seen[first])

    day = max(0, i + 1 - round(24 * per_hour))
    features = (
        math.log(hours_up + YOUNG_H),
        logistic.logit(min(1 - 1e-6, max(1e-6, share))),
        available(1),
        available(6),
        _same_hours(place, counted, i, ahead),
        available(24),
        *crowds,
        math.log1p(counted.flips[i + 1] - counted.flips[day]),
    )
    return Row(place.name, place.first + i, features, counted.survived[i])


def _same_hours(place: Place, counted: _Counted, i: int, ahead: int) -> float:
    """Begins at UNSEEN, which counts as one day."""
    day = round(24 * 3600 / place.step_s)
    up, seen = UNSEEN * ahead, ahead
    for first in range(i + 1 - day, max(-1, i - SAME_HOURS_DAYS * day), -day):
        end = min(i + 1, first + ahead)
        up += counted.up[end] - counted.up[first]
        seen += counted.seen[end] - counted.seen[first]
    return up / seen
