"""Amounts over hours: nothing is lost and nothing is made by rounding."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from common.domain.ledger import by_hour, spread

START = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@given(micro_usd=st.integers(0, 10**12), seconds=st.integers(1, 10**6))
def test_what_is_spread_is_the_amount_and_each_hour_is_within_a_micro_dollar_of_its_share(
    micro_usd: int, seconds: int
) -> None:
    hours = dict(by_hour(Decimal(1), START, START + timedelta(seconds=seconds)))

    parts = spread(micro_usd, hours)

    assert sum(parts.values()) == micro_usd
    for hour, part in parts.items():
        assert abs(part - micro_usd * hours[hour] / sum(hours.values())) <= 1


def test_what_fills_one_hour_is_all_in_it() -> None:
    assert spread(7, {START: Decimal("0.25")}) == {START: 7}
