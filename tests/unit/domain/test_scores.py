"""The scores agree with their definitions."""

from __future__ import annotations

import random
from itertools import product
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.scores import Sample, auc, brier, interval95, pinball, quantile

scored = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=40)


@given(scored)
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    good, bad = ([chance for chance, outcome in pairs if outcome is kind] for kind in (True, False))

    found = auc(pairs)

    if not good or not bad:
        assert found is None
    else:
        right = sum((g > b) + 0.5 * (g == b) for g, b in product(good, bad))
        assert found == pytest.approx(right / (len(good) * len(bad)))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50))
def test_quantiles_agree_with_the_standard_library(values: list[float]) -> None:
    ordered = sorted(values)

    deciles = quantiles(ordered, n=10, method="inclusive")

    assert [quantile(ordered, share / 10) for share in range(1, 10)] == pytest.approx(deciles)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_a_growing_sample_lags_by_a_twentieth_at_most(values: list[float]) -> None:
    sample = Sample()
    for value in values:
        sample.add(value)

    known = [sorted(values[:n]) for n in range(int(len(values) / 1.06), len(values) + 1) if n]
    assert len(sample) == len(values)
    assert any(sample.quantile(0.8) == quantile(some, 0.8) for some in known)


def test_pinball_is_least_at_the_quantile_and_brier_at_the_truth() -> None:
    values = [float(n) for n in range(101)]

    losses = {guess: sum(pinball(value, guess, 0.9) for value in values) for guess in values}

    assert min(losses, key=lambda guess: losses[guess]) == pytest.approx(90, abs=1)
    assert brier([(1.0, True), (0.0, False)]) == 0
    assert brier([(0.5, True), (0.5, False)]) == 0.25


def test_an_interval_holds_the_mean_of_its_units_and_repeats_with_its_seed() -> None:
    units = [float(n) for n in range(50)]

    def of(seed: int) -> tuple[float, float] | None:
        return interval95(units, lambda some: sum(some) / len(some), random.Random(seed).randrange)

    found = of(1)
    assert found == of(1) != of(2)
    assert found is not None
    assert found[0] < 24.5 < found[1]
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * 14.43 / 50**0.5, rel=0.25)


def test_one_unit_has_no_interval() -> None:
    assert interval95([1.0], lambda some: sum(some), lambda n: n - 1) is None
