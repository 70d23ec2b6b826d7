"""Hours that were not billed because hibernated: what counts, and what does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from common.domain.offer import Offer
from common.domain.rental import Loss, Meter, Rental, RentalState
from common.domain.savings import hibernated

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
OFFER = Offer(
    provider="vast",
    offer_id="1",
    machine_id="1",
    gpu="RTX 4090",
    num_gpus=1,
    gpu_ram_mb=24_000,
    gpu_usd_per_hour=Decimal("0.4"),
    storage_usd_per_gb_month=Decimal("0.1"),
)


def at(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def rental(
    start: float,
    end: float | None,
    *,
    served: bool = True,
    loss: Loss | None = None,
    pooled: float | None = None,
    **more: Any,
):
    return Rental(
        label=f"l{start}",
        account="acme",
        instance_id="i1",
        instance_key="acme.i1",
        provider="vast",
        at=at(start),
        created_at=at(start),
        offer=OFFER,
        image="i",
        disk_gb=32,
        not_before=at(start),
        ready_at=at(start) if served else None,
        assigned_at=at(pooled) if pooled is not None else None,
        loss=loss,
        meter=Meter(disk_from=at(start), disk_until=at(end) if end is not None else None),
        **more,
    )


def spans(*rentals: Rental, since: float = 0, until: float = 24) -> list[tuple[float, float]]:
    found = hibernated(rentals, since=at(since), until=at(until))
    return [((start - NOON) / timedelta(hours=1), (end - NOON) / timedelta(hours=1)) for start, end in found]


def test_the_time_between_two_machines_and_until_now_was_not_billed() -> None:
    assert spans(rental(1, 3), rental(8, 9)) == [(3, 8), (9, 24)]


def test_what_still_runs_saves_nothing() -> None:
    assert spans(rental(1, None)) == []


def test_the_wait_for_the_first_machine_and_after_an_interruption_is_no_saving() -> None:
    assert spans() == []
    assert spans(rental(5, 6, loss="interrupted"), rental(7, None)) == []


def test_a_standby_that_bills_on_takes_nothing_from_the_hours_without_a_gpu() -> None:
    assert spans(rental(1, 3), rental(1.5, None, kind="standby"), rental(8, 9)) == [(3, 8), (9, 24)]


def test_the_wait_after_a_gpu_that_was_fenced_is_no_saving() -> None:
    serving = rental(1, 3, state=RentalState.SERVING)
    fenced = serving.to(RentalState.HELD, at=at(2)).to(RentalState.RELEASING, at=at(3))
    back = serving.to(RentalState.HELD, at=at(2)).to(RentalState.SERVING, at=at(2.5))

    assert spans(fenced, rental(5, None)) == []
    assert spans(back, rental(5, None)) == [(3, 5)]


def test_the_losers_of_a_race_and_failed_starts_are_no_hibernation() -> None:
    assert spans(rental(1, 5), rental(1.1, 1.2, served=False)) == [(5, 24)]
    assert spans(rental(1, 2), rental(4, 4.5, served=False), rental(5, None)) == [(2, 4)]


def test_only_the_asked_span_counts() -> None:
    assert spans(rental(1, 3), rental(9, None), since=6, until=10) == [(6, 9)]
    assert spans(rental(1, 3), since=6, until=10) == [(6, 10)]


def test_the_pools_time_is_not_the_instances() -> None:
    assert spans(rental(1, 3), rental(4, None, pooled=8)) == [(3, 8)]
