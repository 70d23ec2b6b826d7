"""What a standby costs, and where it may stand."""

from __future__ import annotations

from decimal import Decimal

import pytest

from common.domain.region import place_of, region_of, regions
from common.domain.standby_price import (
    ADDRESS_USD_PER_HOUR,
    DISK_GB_MIN,
    Terms,
    monthly_cost,
    standby_offer,
    standby_offers,
    terms_of,
)

CENT = Decimal("0.01")
IOWA = Terms(zone="us-central1-a")


def _place(text: str):  # type: ignore[no-untyped-def]
    place = place_of(text)
    assert place
    return place


def test_a_month_is_shown_by_its_parts() -> None:
    cost = monthly_cost(IOWA, 30)

    assert cost.machine.quantize(CENT) == Decimal("4.89")
    assert cost.disk.quantize(CENT) == Decimal("3.00")
    assert cost.address.quantize(CENT) == Decimal("1.82")
    assert cost.usd_per_month.quantize(CENT) == Decimal("9.71")
    assert cost.usd_per_hour.quantize(Decimal("0.0001")) == Decimal("0.0133")


def test_the_promise_of_seven_dollars_is_met_by_the_smallest_machine_or_the_slow_disk() -> None:
    def month(machine_type: str, disk_type: str) -> Decimal:
        terms = Terms(zone="us-central1-a", machine_type=machine_type, disk_type=disk_type)
        return monthly_cost(terms, 30).usd_per_month

    assert Decimal(7) < month("e2-micro", "pd-balanced") < Decimal("7.5")
    assert Decimal("7.5") < month("e2-small", "pd-standard") < Decimal("8.5")
    assert Decimal(5) < month("e2-micro", "pd-standard") < Decimal(6)


def test_traffic_comes_on_top() -> None:
    quiet, busy = (monthly_cost(IOWA, 30, egress_gb=Decimal(gb)) for gb in (0, 10))

    assert busy.usd_per_month - quiet.usd_per_month == Decimal("1.2")
    assert monthly_cost(Terms(zone="australia-southeast1-a"), 30, egress_gb=Decimal(10)).egress == Decimal("1.9")


@pytest.mark.parametrize("text", ["Iowa, US", "Sweden, SE", "Norway", "New Zealand, NZ"])
def test_spot_in_the_nearest_zones_comes_first_and_on_demand_last(text: str) -> None:
    offers = standby_offers(_place(text), 30)

    models = [terms_of(offer.offer_id).model for offer in offers]
    assert models == sorted(models)  # spot before standard
    assert set(models) == {"spot", "standard"}
    order = list(dict.fromkeys(region_of(offer.machine_id) for offer in offers))
    assert 1 <= len(order) <= 3
    first = [offer.machine_id for offer in offers[: len(regions()[order[0]].zones)]]
    assert first == list(regions()[order[0]].zones)


def test_a_region_far_beyond_the_nearest_is_not_considered() -> None:
    reached = {region_of(offer.machine_id) for offer in standby_offers(_place("Western Australia, AU"), 30)}

    assert "asia-southeast1" not in reached
    assert {region_of(offer.machine_id) for offer in standby_offers(_place("Gauteng, ZA"), 30)} == {"africa-south1"}


def test_an_offer_is_all_in_and_says_what_is_created() -> None:
    offer = standby_offers(_place("Iowa, US"), 50)[0]
    terms = terms_of(offer.offer_id)

    assert (offer.provider, offer.machine_id, offer.gpu, offer.num_gpus) == ("gcp", "us-central1-a", "cpu", 0)
    assert offer.usd_per_hour(50).quantize(Decimal("1e-9")) == monthly_cost(terms, 50).usd_per_hour.quantize(
        Decimal("1e-9")
    )
    assert offer.created_disk_gb(1) == DISK_GB_MIN


def test_a_cap_leaves_the_dear_ones_out() -> None:
    everything = standby_offers(_place("Iowa, US"), 30)
    cap = everything[0].usd_per_hour(30)

    found = standby_offers(_place("Iowa, US"), 30, max_usd_per_hour=cap)

    assert found
    assert len(found) < len(everything)
    assert all(offer.usd_per_hour(30) <= cap for offer in found)


def test_on_demand_costs_more_with_its_address() -> None:
    spot, standard = (standby_offer(Terms(zone="us-east1-b", model=model)) for model in ("spot", "standard"))

    assert standard.gpu_usd_per_hour > 2 * spot.gpu_usd_per_hour - ADDRESS_USD_PER_HOUR["standard"]


@pytest.mark.parametrize("id", ["", "us-central1-a", "a/b/c/d", "us-central1-a/e2-small/free/pd-balanced", "4711"])
def test_an_offer_of_something_else_is_refused(id: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        terms_of(id)


def test_terms_survive_their_offers_id() -> None:
    assert terms_of(IOWA.offer_id) == IOWA
