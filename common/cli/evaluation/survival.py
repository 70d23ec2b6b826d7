"""Can it be told which machines will still be there in an hour? Rolling origin: refitted on the past of each block.

Held against three baselines that are fitted on the same past: the constant (the share that survived), the age of the
present run alone, and the availability of the last 24 hours alone.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

from common.cli.evaluation.readers import Recorded
from common.cli.evaluation.report import ENOUGH, Bound, Evaluation, Measured, span
from common.domain import logistic, survival
from common.domain.scores import Draw, auc, brier, intervals95
from common.domain.survival import FEATURES, Coefficients, Place, Row

HORIZONS_H = (1, 4, 6)
BOUND_HORIZON_H = 1
LEARN_SHARE = 0.4
"""Of the span, before the first forecast is scored."""
FOLDS = 5
"""Blocks of the rest; the model is refitted before each."""
MODELS = ("model", "age", "day")
"""The whole one, and the two baselines."""
BLOCK_H = 24
"""Looks of one place on one day tell the same story: they are drawn together."""
MAX_INTERVAL_ROWS = 2_000
"""Scored rows are thinned evenly to so many for the intervals; the numbers themselves use all."""
AUC_GAIN_AT_LEAST = 0.02
SKILL_AT_LEAST = 0.12


class Forecast(NamedTuple):
    """The chances that each model gave one row, and what happened."""

    block: tuple[str, int]
    survived: bool
    model: float
    age: float
    day: float
    constant: float


def evaluate(recorded: Recorded, draw: Draw) -> Evaluation:
    """Per folder of availability traces and horizon: AUC, Brier skill, calibration, and the bounds at one hour."""
    found = Evaluation("survival")
    for folder, places in recorded.places.items():
        found.data.append(described(folder, places, recorded))
        for horizon_h in HORIZONS_H:
            if horizon_h * 3600 < places[0].step_s:
                continue
            forecasts = roll(places, horizon_h)
            if forecasts:
                _report(found, folder, places, horizon_h, forecasts, draw)
    return found


def described(folder: str, places: Sequence[Place], recorded: Recorded) -> dict[str, Any]:
    looks = sum(look is not None for place in places for look in place.up)
    return {
        "folder": folder,
        "files": recorded.files_of("availability", folder),
        "series": len(places),
        "n": looks,
        "step_s": places[0].step_s,
        "availability": round(sum(place.up.count(True) for place in places) / looks, 4) if looks else None,
        "dropped_rows": recorded.dropped_of("availability", folder),
        **_span(places),
    }


def roll(places: Sequence[Place], horizon_h: int) -> list[Forecast]:
    """Every scored forecast: made by models that were fitted on windows that had ended before its block began."""
    step_s = places[0].step_s
    ahead = max(1, round(horizon_h * 3600 / step_s))
    known = [row for row in survival.rows(places, horizon_h) if row.survived is not None]
    start = min(place.first for place in places)
    ticks = max(place.first + len(place.up) for place in places) - start
    first = start + LEARN_SHARE * ticks
    edges = [first + (start + ticks - first) * fold / FOLDS for fold in range(FOLDS + 1)]
    found: list[Forecast] = []
    for begin, end in itertools.pairwise(edges):
        past = [row for row in known if row.tick + ahead < begin]
        if past:
            block = [row for row in known if begin <= row.tick < end]
            found += _block(past, block, horizon_h, step_s)
    return found


def coefficients(recorded: Recorded, now: datetime) -> Coefficients:
    """Fitted on everything recorded, for the product to ship. Raises ValueError if nothing can be fitted."""
    rows: dict[int, list[Row]] = defaultdict(list)
    steps = []
    for places in recorded.places.values():
        steps.append(places[0].step_s)
        for horizon_h in HORIZONS_H:
            if horizon_h * 3600 >= places[0].step_s:
                rows[horizon_h] += (row for row in survival.rows(places, horizon_h) if row.survived is not None)
    if not any(rows.values()):
        raise ValueError("no availability trace is long enough to fit anything on")
    step_s = sorted(steps)[len(steps) // 2]
    every = [place for places in recorded.places.values() for place in places]
    days = sum(len(place.up) * place.step_s for place in every) / 86_400
    return Coefficients(
        fitted_on=f"availability traces of {len(every)} places, {days:.0f} place-days, one look every {step_s:g} s",
        fitted_at=now.date().isoformat(),
        features=tuple(FEATURES),
        models=tuple(survival.fit(some, horizon_h=h, step_s=step_s) for h, some in sorted(rows.items()) if some),
    )


def _block(past: Sequence[Row], block: Sequence[Row], horizon_h: int, step_s: float) -> list[Forecast]:
    model = survival.fit(past, horizon_h=horizon_h, step_s=step_s)
    age, day = (_alone(past, name, horizon_h, step_s) for name in ("log_age", "available_24h"))
    per_block = max(1, round(BLOCK_H * 3600 / step_s))
    return [
        Forecast(
            block=(row.place, row.tick // per_block),
            survived=bool(row.survived),
            model=model.chance(row),
            age=age(row),
            day=day(row),
            constant=model.base_rate,
        )
        for row in block
    ]


def _alone(past: Sequence[Row], name: str, horizon_h: int, step_s: float) -> Callable[[Row], float]:
    """The model of one feature; fitted as the whole one is."""
    which = list(FEATURES).index(name)
    used = past[:: max(1, -(-len(past) // survival.MAX_FIT_ROWS))]
    weight = min(1.0, len(past) / len(used) * step_s / (horizon_h * 3600))
    fitted = logistic.fit(
        [(row.features[which],) for row in used],
        [bool(row.survived) for row in used],
        penalties=(1.0,),
        row_weight=weight,
    )
    return lambda row: fitted.chance((row.features[which],))


def _report(
    found: Evaluation, folder: str, places: Sequence[Place], horizon_h: int, every: Sequence[Forecast], draw: Draw
) -> None:  # fmt: skip
    values = _numbers(every)
    drawn = intervals95(_blocks(every), lambda some: _numbers([one for block in some for one in block]), draw)
    numbers = {name: Measured(value, drawn.get(name), len(every)) for name, value in values.items()}
    if horizon_h == BOUND_HORIZON_H and len(every) >= ENOUGH and values["auc_gain"] is not None:
        title = f"{folder}: survival of {horizon_h} h"
        found.bounds += [
            Bound(f"{title}, {name}", "at least", bound, numbers[number])
            for name, bound, number in (
                ("AUC above the better of age only and 24 h availability only", AUC_GAIN_AT_LEAST, "auc_gain"),
                ("Brier skill against a constant", SKILL_AT_LEAST, "skill_model"),
                ("Brier skill above the better of the two baselines", 0.0, "skill_gain"),
            )
        ]
    found.results.append(
        {
            "folder": folder,
            "horizon": f"{horizon_h} h",
            "places": len(places),
            "n": len(every),
            "survived_share": round(sum(one.survived for one in every) / len(every), 4),
            **_span(places),
            **{name: number.shown() for name, number in numbers.items()},
            "calibration": _calibration(every),
        }
    )


def _numbers(some: Sequence[Forecast]) -> dict[str, float | None]:
    """Everything that is measured on forecasts of one horizon."""
    lived = [one.survived for one in some]
    scored = {name: list(zip(map(attrgetter(name), some), lived, strict=True)) for name in (*MODELS, "constant")}
    areas = {name: auc(scored[name]) for name in MODELS}
    errors = {name: brier(pairs) for name, pairs in scored.items()}
    skills = {name: 1 - errors[name] / errors["constant"] if errors["constant"] else None for name in MODELS}
    return {
        **{f"auc_{name}": area for name, area in areas.items()},
        "auc_gain": _gain(areas),
        **{f"brier_{name}": error for name, error in errors.items()},
        **{f"skill_{name}": skill for name, skill in skills.items()},
        "skill_gain": _gain(skills),
    }


def _gain(of: Mapping[str, float | None]) -> float | None:
    """How far the model is above the better of the baselines."""
    model, *others = (of[name] for name in MODELS)
    known = [other for other in others if other is not None]
    return model - max(known) if model is not None and known else None


def _blocks(every: Sequence[Forecast]) -> list[list[Forecast]]:
    thinned = every[:: max(1, -(-len(every) // MAX_INTERVAL_ROWS))]
    blocks: Mapping[tuple[str, int], list[Forecast]] = defaultdict(list)
    for one in thinned:
        blocks[one.block].append(one)
    return list(blocks.values())


def _calibration(every: Sequence[Forecast], groups: int = 5) -> list[dict[str, float]]:
    """Per fifth of the forecasts, from the least sure on: the mean chance given, and the share that survived."""
    ordered = sorted(every, key=lambda one: one.model)
    cuts = [len(ordered) * group // groups for group in range(groups + 1)]
    fifths = [ordered[a:b] for a, b in itertools.pairwise(cuts) if b > a]
    return [
        {
            "given": round(sum(one.model for one in fifth) / len(fifth), 4),
            "survived": round(sum(one.survived for one in fifth) / len(fifth), 4),
        }
        for fifth in fifths
    ]


def _span(places: Sequence[Place]) -> dict[str, Any]:
    """Traces without a clock begin in 1970: only their days mean anything."""
    step_s = places[0].step_s
    first = min(place.first for place in places)
    return span((first * step_s, max(place.first + len(place.up) for place in places) * step_s))
