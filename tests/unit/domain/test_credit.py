"""How long the money lasts."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from common.domain.credit import Level, Runway, runway_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def reading(credit: str, burn: str, before: Runway | None = None) -> Runway:
    return runway_of(
        "vast",
        credit_usd=Decimal(credit),
        burn_usd_per_hour=Decimal(burn),
        warn_below_h=24,
        hibernate_below_h=1,
        before=before,
        now=NOW,
    )


@pytest.mark.parametrize(
    ("credit", "burn", "level"),
    [
        ("240", "10", Level.FINE),
        ("239.99", "10", Level.LOW),
        ("10", "10", Level.LOW),
        ("9.99", "10", Level.CRITICAL),
        ("-3", "10", Level.CRITICAL),
        ("0", "0", Level.FINE),
    ],
)
def test_the_level_follows_the_hours_left(credit: str, burn: str, level: Level) -> None:
    assert reading(credit, burn).level is level


def test_only_a_second_critical_reading_in_a_row_hibernates() -> None:
    first = reading("1", "10")
    recovered = reading("100", "10", first)

    assert not first.must_hibernate
    assert reading("1", "10", first).must_hibernate
    assert not reading("1", "10", recovered).must_hibernate
