"""What a machine costs by our own meter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from common.domain.rental import Meter, Rental, RentalState
from tests.unit.domain.test_strategy import offer

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = START + timedelta(hours=5)


def rental(meter: Meter, *, billed_s_min: float = 60.0) -> Rental:
    return Rental(
        label="dumont-d-i-1-aaaaaaaa",
        account="a",
        instance_id="i",
        instance_key="a.i",
        provider="gcp",
        at=START,
        created_at=START,
        offer=offer(usd="3.6", billed_s_min=billed_s_min),
        image="",
        disk_gb=10,
        not_before=START,
        meter=meter,
    )


def gpu_usd(meter: Meter, **more: float) -> Decimal:
    return round(rental(meter, **more).metered_usd(LATER)["gpu"], 6)


def test_a_run_bills_no_less_than_the_vendors_least() -> None:
    short = Meter(gpu_from=START, gpu_until=START + timedelta(seconds=20))
    long = Meter(gpu_from=START, gpu_until=START + timedelta(seconds=90))

    assert gpu_usd(short) == Decimal("0.06")
    assert gpu_usd(short, billed_s_min=0.0) == Decimal("0.02")
    assert gpu_usd(long) == Decimal("0.09")


def test_while_it_stood_still_it_did_not_bill() -> None:
    ran = Meter(gpu_from=START).stopped(START + timedelta(seconds=100)).resumed(START + timedelta(seconds=400))

    assert gpu_usd(ran.stopped(START + timedelta(seconds=500))) == Decimal("0.2")
    assert gpu_usd(ran) == Decimal("3.6") * 5 - Decimal("0.3")


def test_while_its_host_is_offline_neither_part_bills_and_what_had_ended_stays_ended() -> None:
    def at(seconds: float) -> datetime:
        return START + timedelta(seconds=seconds)

    away = Meter(disk_from=START, gpu_from=START).offline(at(100)).offline(at(200))
    back, gone = away.online(at(400)).ended(at(500)), away.ended(at(300))

    for meter in (away, gone):
        assert rental(meter).metered_usd(LATER)["gpu"] == Decimal("0.1")
        assert rental(meter).disk_billed_until(LATER) == at(100)
    assert rental(away).now_usd_per_hour == 0
    assert gpu_usd(back) == Decimal("0.2")
    assert rental(back).disk_billed_until(LATER) == at(200)
    assert gone.online(at(600)).paused_s == 0.0


def test_a_machine_whose_host_is_offline_is_looked_at_each_minute() -> None:
    serving = rental(Meter(gpu_from=START)).to(RentalState.SERVING, at=START)

    assert not serving.with_restlessness().restless
    assert serving.model_copy(update={"meter": serving.meter.offline(START)}).with_restlessness().restless


def test_what_stood_still_before_a_period_makes_the_period_no_cheaper() -> None:
    hour = timedelta(hours=1)
    meter = Meter(gpu_from=START, disk_from=START).offline(START + hour).online(START + 4 * hour)

    of_the_last = rental(meter).metered_usd(LATER, since=LATER - hour)

    assert of_the_last["gpu"] == Decimal("3.6")
    assert rental(meter).metered_usd(LATER)["gpu"] == 2 * Decimal("3.6")
