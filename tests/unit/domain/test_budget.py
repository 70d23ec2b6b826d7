"""What an account has spent, will have spent, and may start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from common.domain.budget import Budget, Level, Period, Spending, findings, refusal, spending
from common.domain.ledger import LedgerEntry
from common.domain.rental import Meter, RentalState
from tests.unit.domain.test_pool import rental

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def spent(burn: str = "0", hour: str = "0", day: str = "0") -> Spending:
    return Spending(burn_usd_per_hour=Decimal(burn), hour_usd=Decimal(hour), day_usd=Decimal(day))


def found(spending: Spending, **caps: str) -> list[tuple[Level, Period]]:
    budget = Budget.model_validate({"account": "acme"} | caps)
    return [(finding.level, finding.period) for finding in findings(budget, spending, NOW)]


def test_without_a_cap_nothing_is_found() -> None:
    assert found(spent("100", "100", "1000")) == []


def test_a_prediction_above_the_cap_warns_and_a_used_up_cap_is_exceeded() -> None:
    assert found(spent("2", "0.5", "0.5"), usd_per_hour="2") == []
    assert found(spent("4", "0.5", "0.5"), usd_per_hour="2") == [(Level.WARNING, Period.HOUR)]
    assert found(spent("4", "2", "2"), usd_per_hour="2") == [(Level.EXCEEDED, Period.HOUR)]
    assert found(spent("1", "0.5", "6"), usd_per_day="15") == [(Level.WARNING, Period.DAY)]
    assert found(spent("1", "0.5", "15"), usd_per_day="15", usd_per_hour="0.9") == [
        (Level.WARNING, Period.HOUR),
        (Level.EXCEEDED, Period.DAY),
    ]


def test_a_start_is_refused_when_a_cap_is_used_up_or_its_price_would_break_the_hourly_one() -> None:
    hourly, daily = Budget(account="a", usd_per_hour=Decimal(2)), Budget(account="a", usd_per_day=Decimal(10))

    assert refusal(hourly, spent("1"), Decimal(1), NOW) is None
    assert "per hour" in (refusal(hourly, spent("1.5"), Decimal(1), NOW) or "")
    assert refusal(daily, spent("1", "1", "9.99"), Decimal(1), NOW) is None
    assert "wait until 2026-03-02 00:00 UTC" in (refusal(daily, spent("0", "0", "10"), Decimal(0), NOW) or "")


def test_spending_is_the_meter_within_the_period_and_the_ledger_for_what_is_settled() -> None:
    yesterday = NOW - timedelta(days=1)
    runs = rental(
        1,
        usd="2",
        state=RentalState.SERVING,
        account="acme",
        create_called_at=yesterday,
        meter=Meter(gpu_from=yesterday),
    )
    before = NOW.replace(hour=3, minute=0)
    booked = [entry("settled", NOW.replace(minute=0), 250_000), entry("settled", before, 1_000_000)]
    doubled = entry("l1", before, 99_000_000)

    total = spending([runs], [*booked, doubled], NOW)

    assert total.burn_usd_per_hour == runs.offer.usd_per_hour(32)
    assert total.hour_usd == Decimal(1) + Decimal("0.25")
    assert total.day_usd == Decimal(25) + Decimal("1.25")


def test_an_assigned_machine_of_the_pool_is_spent_only_from_its_assignment_on() -> None:
    runs = rental(
        1,
        usd="2",
        state=RentalState.SERVING,
        account="acme",
        create_called_at=NOW,
        meter=Meter(gpu_from=NOW - timedelta(hours=5)),
        assigned_at=NOW - timedelta(minutes=15),
    )

    assert spending([runs], [], NOW).day_usd == Decimal("0.5")


def entry(label: str, hour: datetime, micro_usd: int) -> LedgerEntry:
    return LedgerEntry(
        account="acme",
        instance_id="i",
        instance_key="acme.i",
        label=label,
        provider="vast",
        kind="gpu",
        hour=hour,
        micro_usd=micro_usd,
    )


@pytest.mark.parametrize("period", Period)
def test_a_warning_is_given_once_per_period(period: Period) -> None:
    warned = Budget(account="a").warning(period, NOW)

    assert warned.has_warned(period, NOW)
    assert not warned.has_told(period, NOW)
    assert not warned.has_warned(period, period.end(NOW))
