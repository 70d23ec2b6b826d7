"""Buy now, or wait? What the rule does, and what it would have saved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import waiting
from common.domain.scores import quantile
from common.domain.series import DAY_S, Series


def daily(*usd: float) -> Series:
    return Series(DAY_S, tuple(range(len(usd))), tuple(usd))


SWINGING = daily(*[3.0, 1.0, 3.0] * 10)
"""Cheap on every third day."""


def test_a_cheap_price_is_bought_and_a_dear_one_is_waited_out() -> None:
    cheap, dear = daily(*SWINGING.usd[:14]), daily(*SWINGING.usd[:15])

    assert not waiting.advise(cheap, 2).wait
    assert waiting.advise(dear, 2).wait


def test_waiting_for_the_swing_closes_the_whole_gap() -> None:
    past = waiting.backtest(SWINGING, 2)

    assert waiting.gap_closed(past) == pytest.approx(1.0)
    assert waiting.advise(SWINGING, 2).saved_share == pytest.approx(waiting.possible_share(past))


def test_in_a_rising_market_waiting_costs_and_the_backtest_says_so() -> None:
    rising = daily(*(1.0 + 0.05 * n for n in range(40)))

    saved = waiting.advise(rising, 3).saved_share

    assert saved is not None
    assert saved < 0


def test_too_short_a_past_says_buy() -> None:
    found = waiting.advise(daily(*range(1, waiting.MIN_SEEN)), 1)

    assert (found.wait, found.cheap_usd_per_hour, found.n) == (False, None, 0)


def test_a_constant_price_has_no_gap_to_close() -> None:
    past = waiting.backtest(daily(*[2.0] * 30), 3)

    assert past
    assert waiting.gap_closed(past) is None
    assert waiting.saved_share(past) == 0


def test_nobody_buys_in_a_gap() -> None:
    holed = Series(DAY_S, (*range(10), 12, 13), (*[1.0, 3.0] * 5, 1.0, 3.0))

    bought = {p.tick: p for p in waiting.backtest(holed, 3)}

    assert bought[9].waited == 3
    assert 8 not in bought


@given(st.lists(st.floats(0.1, 10), min_size=10, max_size=60), st.integers(1, 5))
def test_the_rule_lies_between_hindsight_and_the_worst_price(usd: list[float], wait: int) -> None:
    for p in waiting.backtest(daily(*usd), wait):
        ahead = usd[p.tick : p.tick + wait + 1]
        assert min(ahead) == p.oracle <= p.rule <= max(ahead)
        assert (p.now, p.blind) == (ahead[0], ahead[-1])


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0.1, 10)), min_size=1, max_size=50, unique_by=lambda p: p[0]))
def test_the_sliding_quartile_is_the_quartile_of_the_look_back(points: list[tuple[int, float]]) -> None:
    points.sort()
    series = Series(DAY_S, tuple(day for day, _ in points), tuple(usd for _, usd in points))

    for i, found in enumerate(waiting.cheap_prices(series)):
        window = sorted(usd for day, usd in points[: i + 1] if points[i][0] - day < 14)
        assert found == (quantile(window, 0.25) if len(window) >= waiting.MIN_SEEN else None)
