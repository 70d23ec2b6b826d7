"""Forecasts, bands, bids: learned in order of time, and never better in the telling than the last value."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import price
from common.domain.series import DAY_S, HOUR_S, Series, gridded

prices = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60)
gappy = st.lists(st.tuples(st.integers(0, 90), st.floats(0.01, 100.0)), min_size=1, max_size=60)


def daily(*usd: float) -> Series:
    return Series(DAY_S, tuple(range(100, 100 + len(usd))), tuple(usd))


def reverting(n: int, seed: int = 1) -> Series:
    """Noise around one price: the 7-day mean is the better forecast."""
    draw = random.Random(seed)
    return daily(*(math.exp(draw.gauss(0, 0.2)) for _ in range(n)))


def wandering(n: int, seed: int = 1) -> Series:
    """A random walk: nothing beats the last value."""
    draw, usd = random.Random(seed), [1.0]
    for _ in range(n - 1):
        usd.append(usd[-1] * math.exp(draw.gauss(0, 0.05)))
    return daily(*usd)


@given(gappy, st.integers(1, 7))
def test_bands_are_in_order_and_the_point_lies_within_the_past(points: list[tuple[int, float]], horizon: int) -> None:
    series = gridded([(day * DAY_S, usd) for day, usd in points], DAY_S)

    found = price.forecasts([series], horizon)[0]

    assert found is not None
    assert 0 < found.p10 <= found.p50 <= found.p90 < math.inf
    assert min(series.usd) * (1 - 1e-9) <= found.p50 <= max(series.usd) * (1 + 1e-9)


@given(gappy)
def test_a_forecast_knows_nothing_of_what_comes_later(points: list[tuple[int, float]]) -> None:
    series = gridded([(day * DAY_S, usd) for day, usd in points], DAY_S)
    guesses = {origin.tick: guess for _, origin, guess in price.replay([series], 3)}
    middle = series.ticks[len(series) // 2]

    then = price.forecasts([series.until(middle)], 3)[0]

    assert then is not None
    assert then.p50 == pytest.approx(math.exp(guesses[middle].point))
    assert then.p90 == pytest.approx(math.exp(guesses[middle].high))


@pytest.mark.parametrize("horizon", [1, 3, 7])
def test_peers_and_skill_know_nothing_of_what_comes_later_either(horizon: int) -> None:
    many = [wandering(60), reverting(60)]
    guesses = {(which, origin.tick): guess for which, origin, guess in price.replay(many, horizon)}

    for tick in range(110, 159, 7):
        then = price.forecasts([series.until(tick) for series in many], horizon)
        for which, found in enumerate(then):
            assert found is not None
            low, _, high, _ = guesses[which, tick]
            assert (math.log(found.p10), math.log(found.p90)) == (pytest.approx(low), pytest.approx(high))


def test_a_random_walk_is_served_its_last_value_and_has_no_trend() -> None:
    series = wandering(300)

    found = price.forecasts([series], 1)[0]

    assert found is not None
    assert (found.method, found.p50, found.trend) == ("last_value", pytest.approx(series.usd[-1]), None)


def test_the_shrink_is_served_where_it_has_proven_itself_on_that_very_series() -> None:
    calm, noisy = wandering(200), reverting(200)

    found = price.forecasts([calm, noisy], 1)

    assert [one and one.method for one in found] == ["last_value", "half_way_to_7_day_mean"]
    assert found[1] is not None
    assert found[1].rmae is not None
    assert found[1].rmae < 1
    assert found[1].trend == ("down" if noisy.usd[-1] > found[1].p50 else "up")


def test_proven_skill_holds_on_what_comes_next() -> None:
    last = served = 0.0
    for which, origin, guess in price.replay([reverting(400, seed) for seed in range(5)], 1):
        assert 0 <= which < 5
        if origin.actual is not None:
            last += abs(origin.actual - origin.last)
            served += abs(origin.actual - guess.point)

    assert served < 0.95 * last


def test_a_constant_price_has_a_band_of_no_width() -> None:
    found = price.forecasts([daily(*[2.0] * 40)], 7)[0]

    assert found is not None
    assert (found.p10, found.p50, found.p90, found.rmae) == (pytest.approx(2), pytest.approx(2), pytest.approx(2), None)


def test_eighty_percent_of_a_random_walks_prices_fall_between_its_bands() -> None:
    inside = n = 0
    for _, origin, guess in price.replay([wandering(200, seed) for seed in range(8)], 3):
        if origin.actual is not None and origin.tick > 140:
            inside += guess.low <= origin.actual <= guess.high
            n += 1

    assert 0.74 < inside / n < 0.86


def test_a_restless_series_has_wider_bands_than_its_calm_peer() -> None:
    calm, restless = wandering(100), daily(*(usd**4 for usd in wandering(100, seed=2).usd))

    quiet, wild = price.forecasts([calm, restless], 1)

    assert quiet is not None
    assert wild is not None
    assert math.log(wild.p90 / wild.p10) > 2 * math.log(quiet.p90 / quiet.p10)


def test_a_jump_out_of_long_calm_does_not_make_bands_without_end() -> None:
    peers = price.Peers()
    for tick in range(100):
        peers.learn_error(200.0 if tick % 2 else -200.0, tick)

    low, high = peers.spread(3)

    prior = price.PRIOR_WIDTH * 3**price.PRIOR_GROWTH
    assert (low, high) == (-price.MAX_WIDTH * prior, price.MAX_WIDTH * prior)


def test_gaps_are_not_steps() -> None:
    series = Series(DAY_S, (1, 2, 10), (1.0, 2.0, 4.0))

    found = price.origins(series, 1)

    assert [origin.move for origin in found] == [None, pytest.approx(math.log(2)), None]
    assert [origin.actual is None for origin in found] == [False, True, True]


def test_nothing_is_forecast_for_an_empty_series() -> None:
    assert price.forecasts([daily(), daily(1.0)], 1)[0] is None


@given(prices, st.floats(0.01, 200.0))
def test_a_bid_never_passes_its_cap_and_its_chances_are_chances(usd: list[float], at_most: float) -> None:
    series = Series(HOUR_S, tuple(range(len(usd) * 3)), tuple(usd * 3))

    bid = price.recommended_bid(series, at_most=at_most)

    if bid is not None:
        assert bid.usd_per_hour <= at_most
        assert bid.outbid_within_1h is not None
        assert 0 < bid.outbid_within_1h <= bid.outbid_within_24h < 1 or bid.n < len(usd) * 3


def test_a_recommended_bid_was_exceeded_on_one_past_day_in_ten_at_most() -> None:
    series = wandering(200)

    bid = price.recommended_bid(series, at_most=1_000)

    assert bid is not None
    margin = math.log(bid.usd_per_hour / series.usd[-1])
    past = [math.log(b / a) for a, b in zip(series.usd, series.usd[1:], strict=False)]
    assert sum(rise > margin + 1e-9 for rise in past) / len(past) <= 0.1
    assert bid.outbid_within_1h is None


def test_the_discount_is_negative_when_spot_is_the_dearer_one() -> None:
    assert price.discount(0.73, 1.0) == pytest.approx(0.27)
    assert price.discount(1.2, 1.0) < 0


def test_absurd_prices_are_left_out_and_the_last_of_a_tick_counts() -> None:
    points = [(7200.0, 0.0), (3600.0, 1.0), (3601.0, 3.0), (3601.0, 2.0), (10.0, math.nan), (20.0, -1.0), (30.0, 1e9)]

    series = gridded(points, HOUR_S)

    assert (series.ticks, series.usd) == ((1,), (2.0,))


@given(st.permutations([(3600.0 * n, 1.0 + n % 5) for n in range(12)] * 2))
def test_the_order_of_points_does_not_matter(points: list[tuple[float, float]]) -> None:
    assert gridded(points) == gridded(sorted(points))
    assert gridded(points).step_s == HOUR_S
