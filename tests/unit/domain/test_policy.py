"""Idle policies and long jobs: what they cost on days that were recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import job, policy
from common.domain.job import Job
from common.domain.policy import IdlePolicy, Load
from common.domain.survival import Place

minutes = st.lists(st.sampled_from([0.0, 0.0, 1.0, 80.0]), min_size=2, max_size=120)


def load(*percent: float, every_s: float = 60) -> Load:
    return Load("gpu", tuple(every_s * n for n in range(len(percent))), tuple(percent))


def test_the_customers_default_is_three_minutes_whatever_a_wake_costs() -> None:
    assert policy.window_s(IdlePolicy.DEFAULT, wake_cost_s=900) == 180
    assert policy.window_s(IdlePolicy.SHADOW, fixed_s=60, wake_cost_s=900) == 60


def test_adaptive_waits_as_long_as_a_wake_costs_and_never_less_than_the_setting() -> None:
    assert policy.window_s(IdlePolicy.ADAPTIVE, wake_cost_s=600) == 600
    assert policy.window_s(IdlePolicy.ADAPTIVE, wake_cost_s=600, price_ratio=1.5) == 900
    assert policy.window_s(IdlePolicy.ADAPTIVE, wake_cost_s=20) == 180
    assert policy.window_s(IdlePolicy.ADAPTIVE) == 180


def test_ten_quiet_minutes_under_a_three_minute_window() -> None:
    found = policy.replay(load(*[50] * 5, *[0] * 10, *[50] * 5), 180)

    assert (found.observed_s, found.idle_s, found.paid_idle_s) == (20 * 60, 10 * 60, 3 * 60)
    assert (found.hibernations, found.wakes, found.resumed_soon) == (1, 1, 0)
    assert found.wasted_share(600) == pytest.approx((3 + 10) / 20)


def test_work_that_is_back_at_once_counts_as_resumed_soon() -> None:
    found = policy.replay(load(50, *[0] * 5, 50, 50), 180)

    assert (found.hibernations, found.resumed_soon) == (1, 1)
    assert found.resumed_soon_share == 1


def test_missing_telemetry_restarts_the_clock_and_is_not_counted() -> None:
    holed = Load("gpu", (0, 60, 120, 1_200, 1_260, 1_320), (0, 0, 0, 0, 0, 0))

    found = policy.replay(holed, 180)

    assert found.hibernations == 0
    assert found.observed_s == 5 * 60


def test_a_value_that_cannot_be_is_not_idle() -> None:
    assert policy.replay(load(*[-1.0] * 10), 180).idle_s == 0
    assert policy.replay(load(*[float("nan")] * 10), 180).idle_s == 0


@given(minutes, st.sampled_from([60.0, 180.0, 600.0]))
def test_a_window_as_long_as_a_wake_costs_at_most_twice_the_least_possible(percent: list[float], wake_s: float) -> None:
    found = policy.replay(load(*percent), wake_s)

    runs, run = [], 0
    for value in [*percent, 100.0]:
        runs, run = (runs, run + 1) if value < 5 else ([*runs, run * 60.0], 0)
    least = sum(min(length, wake_s) for length in runs)
    assert found.paid_idle_s + found.wakes * wake_s <= 2 * least + 1e-6


@given(minutes)
def test_never_hibernating_pays_for_every_idle_second(percent: list[float]) -> None:
    found = policy.replay(load(*percent), None)

    assert found.paid_idle_s == found.idle_s
    assert (found.wakes, found.hibernations) == (0, 0)


def test_an_empty_or_single_sample_is_no_trouble() -> None:
    assert policy.replay(Load("gpu", (), ()), 180).wasted_share(600) is None
    assert policy.replay(load(0.0), 180).observed_s == 60


def hourly(name: str, pattern: str, repeat: int = 60) -> Place:
    return Place(name, "", 3_600, 0, tuple(look == "1" for look in pattern * repeat))


SHORT = Job(work_h=10, deadline_h=14, overhead_h=0.5)


def test_a_job_where_spot_never_ends_pays_the_spot_price_and_one_start() -> None:
    found = job.run(SHORT, [hourly("a", "1")], 0)

    assert found is not None
    assert found.cost == pytest.approx(10.5 * job.SPOT_PRICE)
    assert (found.met_deadline, found.moves, found.on_demand_h) == (True, 0, 0)


def test_a_job_without_any_spot_moves_to_on_demand_in_time() -> None:
    found = job.run(SHORT, [hourly("a", "0")], 0)

    assert found is not None
    assert found.met_deadline
    assert found.cost == pytest.approx(10.5)


def test_two_places_that_take_turns_are_followed() -> None:
    turns = [hourly("a", "111000"), hourly("b", "000111")]

    together, alone = job.run(SHORT, turns, 0), job.run(SHORT, turns[:1], 0)

    assert together is not None
    assert alone is not None
    assert together.cost < 0.6 * alone.cost
    assert together.moves == 3


def test_the_place_that_has_kept_its_machines_is_preferred() -> None:
    places = [hourly("shaky", "110"), hourly("steady", "1", repeat=180)]

    found = job.run(SHORT, places, 90, ranks=job.ranks(places))

    assert found is not None
    assert found.moves == 0


def test_a_job_that_outlasts_the_record_has_no_answer() -> None:
    assert job.run(SHORT, [hourly("a", "1", repeat=12)], 0) is None


@given(st.lists(st.text("01", min_size=30, max_size=30), min_size=1, max_size=3), st.integers(0, 10))
def test_no_deadline_is_ever_missed(patterns: list[str], start: int) -> None:
    places = [hourly(str(n), pattern, repeat=1) for n, pattern in enumerate(patterns)]

    found = job.run(SHORT, places, start, ranks=job.ranks(places))

    assert found is not None
    assert found.met_deadline
    assert found.elapsed_h <= SHORT.deadline_h
