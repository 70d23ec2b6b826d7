"""Whether a machine lives: features that know only the past, and chances that are chances."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import logistic, survival
from common.domain.scores import auc, brier
from common.domain.survival import FEATURES, Place, Row

looks = st.lists(st.sampled_from([True, True, True, False, None]), min_size=1, max_size=200)


def place(*up: bool | None, name: str = "a", region: str = "here", first: int = 0, step_s: float = 600) -> Place:
    return Place(name, region, step_s, first, up)


def fickle(name: str, loses_of_1000: int, n: int = 3_000, seed: int = 1) -> Place:
    """Lost with the same chance at every look; back after an hour."""
    draw, up = random.Random(f"{name}{seed}"), list[bool]()
    while len(up) < n:
        up += [True] if draw.randrange(1_000) >= loses_of_1000 else [False] * 6
    return place(*up[:n], name=name)


def feature(row: Row, name: str) -> float:
    return row.features[list(FEATURES).index(name)]


@given(looks, st.sampled_from([1, 4, 6]))
def test_every_chance_is_a_chance_and_every_row_was_up(up: list[bool | None], horizon_h: int) -> None:
    model = survival.shipped().model(horizon_h)

    for row in survival.rows([place(*up)], horizon_h):
        assert up[row.tick] is True
        assert all(map(math.isfinite, row.features))
        assert 0 < model.chance(row) < 1


@given(looks, looks, st.integers(0, 40))
def test_features_know_nothing_of_what_comes_later(a: list[bool | None], b: list[bool | None], first: int) -> None:
    both = [place(*a), place(*b, name="b", region="there", first=first)]
    cut = max(1, len(a) // 2)
    before = [replace(p, up=p.up[: max(0, cut - p.first)]) for p in both]

    then = {(row.place, row.tick): row.features for row in survival.rows(before, 1)}
    now = {(row.place, row.tick): row.features for row in survival.rows(both, 1) if row.tick < cut}

    assert now == then


@given(looks)
def test_a_row_survived_exactly_if_every_look_of_the_horizon_was_up(up: list[bool | None]) -> None:
    for row in survival.rows([place(*up)], 1):
        ahead = up[row.tick + 1 : row.tick + 7]
        known = len(ahead) == 6 and None not in ahead
        assert row.survived == (all(ahead) if known else None)


def test_features_are_what_their_names_say() -> None:
    here = place(*[False] * 3, *[True] * 6)
    near = place(*[True] * 9, name="near")
    far = place(*[False] * 9, name="far", region="there")

    last = [row for row in survival.rows([here, near, far], 1) if row.place == "a"][-1]

    assert feature(last, "log_age") == pytest.approx(math.log(1 + survival.YOUNG_H))
    assert feature(last, "available_1h") == 1
    assert feature(last, "available_6h") == pytest.approx(6 / 9)
    assert feature(last, "region_available") == 1
    assert feature(last, "others_available") == 0.5
    assert feature(last, "flips_24h") == pytest.approx(math.log(2))


def test_same_hours_looks_at_the_hours_of_past_days_that_the_horizon_covers() -> None:
    day = [True] * 72 + [False] * 72
    up = place(*day * 4, *[True] * 72)

    rows = {row.tick: row for row in survival.rows([up], 1)}

    assert feature(rows[4 * 144 + 10], "same_hours") == pytest.approx((0.5 + 4) / 5)
    assert feature(rows[4 * 144 + 71], "same_hours") == pytest.approx(0.5 / 5)


def test_a_place_without_a_history_is_given_about_the_base_rate_of_the_young() -> None:
    model = survival.shipped().model(1)

    new = survival.newest([place(True, name="new")], model)["new"]

    assert 0.4 * model.base_rate < new < 1.15 * model.base_rate


def test_a_place_that_never_failed_is_trusted_more_than_one_that_often_did() -> None:
    model = survival.shipped().model(6)
    steady = place(*[True] * 1_440, name="steady")
    shaky = place(*([False, True, True] * 480), name="shaky", region="there")

    found = survival.newest([steady, shaky], model)

    assert found["steady"] > 2 * found["shaky"]


def test_a_place_that_is_down_has_no_chance_to_give() -> None:
    assert survival.newest([place(True, False)], survival.shipped().model(1)) == {}
    assert survival.newest([], survival.shipped().model(1)) == {}


def test_the_shipped_coefficients_fit_the_features() -> None:
    shipped = survival.shipped()

    assert shipped.features == tuple(FEATURES)
    assert [model.horizon_h for model in shipped.models] == list(survival.HORIZONS_H)
    assert all(len(model.weights) == len(FEATURES) for model in shipped.models)


def test_coefficients_of_another_version_are_refused() -> None:
    other = survival.shipped().model_dump() | {"features": ("age",)}

    with pytest.raises(ValueError, match="other features"):
        survival.Coefficients.model_validate(other)


def test_a_fit_tells_steady_places_from_fickle_ones_on_days_that_it_has_not_seen() -> None:
    places = [fickle("steady", 2), fickle("shaky", 60), fickle("middling", 20)]
    known = [row for row in survival.rows(places, 1) if row.survived is not None]
    past, later = [r for r in known if r.tick < 1_800], [r for r in known if r.tick >= 1_820]

    model = survival.fit(past, horizon_h=1, step_s=600)

    scored = [(model.chance(row), bool(row.survived)) for row in later]
    constant = [(model.base_rate, outcome) for _, outcome in scored]
    found = auc(scored)
    assert found is not None
    assert found > 0.7
    assert brier(scored) < 0.9 * brier(constant)


def test_a_fit_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        survival.fit([], horizon_h=1, step_s=600)


def test_newtons_method_finds_the_weights_that_made_the_data() -> None:
    draw = random.Random(3)
    rows = [(draw.gauss(0, 1), draw.gauss(5, 2)) for _ in range(4_000)]
    outcomes = [draw.random() < logistic.sigmoid(0.5 + 1.2 * a - 0.4 * (b - 5)) for a, b in rows]

    fit = logistic.fit(rows, outcomes, penalties=(1.0, 1.0))

    assert fit.weights[0] / fit.deviations[0] == pytest.approx(1.2, abs=0.15)
    assert fit.weights[1] / fit.deviations[1] == pytest.approx(-0.4, abs=0.08)


@pytest.mark.parametrize("outcome", [True, False])
def test_outcomes_that_are_all_alike_and_a_constant_feature_do_no_harm(outcome: bool) -> None:
    fit = logistic.fit([(1.0, float(n)) for n in range(50)], [outcome] * 50, penalties=(1.0, 1.0))

    assert abs(fit.chance((1.0, 25.0)) - outcome) < 0.05


def test_perfectly_separated_outcomes_stay_finite() -> None:
    fit = logistic.fit([(float(n),) for n in range(20)], [n >= 10 for n in range(20)], penalties=(0.01,))

    assert 0 < fit.chance((0.0,)) < 0.5 < fit.chance((19.0,)) < 1
