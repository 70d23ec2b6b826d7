"""What every marketplace must do: one suite over each adapter and its simulator, in process and over HTTP.

A new marketplace is a row of MARKETS in tests/market_rig.py; what only one vendor has stands in its own tests.
"""

from __future__ import annotations

import json
import random
from decimal import Decimal

import httpx
import pytest

from common.domain.offer import Wanted
from common.errors import (
    MarketUnknown,
    NoCredit,
    OfferGone,
)
from tests.hand_cranked import SimTransport
from tests.market_rig import BOOT_S, HOUR, MICRO, RTX_4090, START, Rig, alone, launch_of, rig

__all__ = ["alone", "rig"]


# --- search


def test_offers_are_of_the_wanted_model_and_count_cheapest_first(rig: Rig) -> None:
    found = rig.market.search(RTX_4090)

    assert {(offer.provider, offer.gpu, offer.num_gpus) for offer in found} == {(rig.name, "RTX 4090", 1)}
    prices = [offer.usd_per_hour(64) for offer in found]
    assert len(prices) >= 3
    assert prices == sorted(prices)


def test_the_cap_holds_for_gpu_and_disk_together(rig: Rig) -> None:
    everything = rig.market.search(RTX_4090)
    cap = everything[2].usd_per_hour(64)

    found = rig.market.search(RTX_4090.model_copy(update={"max_usd_per_hour": cap}))

    assert [offer.machine_id for offer in found] == [offer.machine_id for offer in everything[:3]]


def test_offers_are_filtered_by_country(rig: Rig) -> None:
    countries = {offer.country for offer in rig.market.search(RTX_4090)}
    wanted = min(country for country in countries if country)

    found = rig.market.search(RTX_4090.model_copy(update={"regions": (wanted,)}))

    assert len(countries) > 1
    assert {offer.country for offer in found} == {wanted}


def test_a_survey_shows_all_of_one_model_at_the_prices_of_a_search(rig: Rig) -> None:
    survey = rig.market.survey("RTX 4090")
    found = rig.market.search(RTX_4090)

    assert survey.is_whole
    assert {(o.machine_id, o.num_gpus, o.gpu_usd_per_hour) for o in survey.offers} >= {
        (o.machine_id, o.num_gpus, o.gpu_usd_per_hour) for o in found
    }
    assert {o.gpu for o in survey.offers} == {"RTX 4090"}
    assert all(o.bid_floor_usd_per_hour is None or o.bid_floor_usd_per_hour > 0 for o in survey.offers)
    assert rig.market.survey("Abacus").offers == ()


def test_what_nobody_offers_is_an_empty_answer(rig: Rig) -> None:
    assert rig.market.search(Wanted(gpu="Abacus 3000")) == []


def test_a_disk_that_no_machine_has_is_an_empty_answer(rig: Rig) -> None:
    assert rig.market.search(RTX_4090.model_copy(update={"disk_gb": 16_000})) == []


# --- create


def test_what_was_created_is_listed_under_its_label(rig: Rig) -> None:
    id = rig.rent(label="dumont-a-b-1-00000000")

    (listed,) = rig.market.list()

    assert (listed.provider_id, listed.label) == (id, "dumont-a-b-1-00000000")


def test_the_machine_starts_with_the_script_and_its_environment(rig: Rig) -> None:
    rig.rent()
    rig.after(BOOT_S)

    (started,) = [effect for effect in rig.sim.drain() if effect.kind == "start"]

    assert (started.label, started.onstart, started.env["A"]) == ("one", "echo up\n", "it's b")


def test_a_taken_offer_is_gone_and_nothing_is_rented(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]
    rig.take(offer)

    with pytest.raises(OfferGone):
        rig.rent(offer, label="two")

    assert "two" not in {row.label for row in rig.market.list()}


def test_without_credit_nothing_is_rented(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]
    rig.sim.set_credit("0")

    with pytest.raises(NoCredit):
        rig.rent(offer)

    assert rig.market.list() == []


def test_an_error_that_hides_a_created_machine_is_no_information(rig: Rig) -> None:
    rig.sim.creates_answer_500 = True

    with pytest.raises(MarketUnknown):
        rig.rent(label="hidden")

    assert [row.label for row in rig.market.list()] == ["hidden"]


def test_a_create_is_made_once_whatever_the_answer(alone: Rig) -> None:
    offer, made = alone.market.search(RTX_4090)[0], []
    real = SimTransport(alone)

    def lose_the_answer(request: httpx.Request) -> httpx.Response:
        answer = real.handle_request(request)
        if request.method in ("PUT", "POST"):
            made.append(request)
            raise httpx.ReadTimeout("lost")
        return answer

    with pytest.raises(MarketUnknown):
        alone.answering(lose_the_answer).create(offer, launch_of("one"))

    assert len(made) == 1
    assert [row.label for row in alone.market.list()] == ["one"]


def test_a_price_that_rose_above_the_cap_is_refused_or_told(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]
    cap = str(offer.usd_per_hour(64))
    rig.sim.price_factor = Decimal("1.5")

    try:
        id = rig.rent(offer, max_usd_per_hour=cap)
    except OfferGone:
        assert rig.market.list() == []
    else:
        listed = rig.market.get(id)
        assert listed
        assert Decimal(listed.usd_per_hour or 0) > Decimal(cap)


def test_a_price_at_the_cap_is_created(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]

    assert rig.rent(offer, max_usd_per_hour=str(offer.usd_per_hour(64)))


# --- the listing and one machine


def test_a_listing_of_thirty_machines_is_whole(rig: Rig) -> None:
    labels = [f"l{n}" for n in range(30)]
    for label, gpu in zip(labels, ["RTX 4090", "RTX 3090", "H100 SXM"] * 10, strict=True):
        wanted = Wanted(gpu=gpu, disk_gb=64)
        found = rig.market.search(wanted) or rig.market.search(Wanted(gpu="A100 SXM4", disk_gb=64))
        rig.rent(found[0], label=label)

    listed = rig.market.list()

    assert sorted(row.label for row in listed) == sorted(labels)
    assert len({row.provider_id for row in listed}) == 30


def test_the_status_follows_the_machine_through_its_life(rig: Rig) -> None:
    id = rig.rent()

    def status() -> list[str]:
        one, (row,) = rig.market.get(id), rig.market.list()
        assert one
        return [one.status, row.status]

    assert status() == ["starting", "starting"]
    rig.after(BOOT_S)
    assert status() == ["running", "running"]
    rig.sim.outbid(rig.sim.contract_of("one"), rig.now)
    assert status() == ["stopped", "stopped"]


def test_a_running_machine_tells_its_address_and_its_price(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]
    id = rig.rent(offer)
    rig.after(BOOT_S)

    found = rig.market.get(id)

    assert found
    assert (found.label, found.ssh_host, found.in_full) == ("one", "127.0.0.1", True)
    assert found.ssh_port
    assert Decimal(found.usd_per_hour or 0).quantize(MICRO) == offer.usd_per_hour(64).quantize(MICRO)


def test_an_unknown_machine_is_none(rig: Rig) -> None:
    assert rig.market.get("4711") is None


# --- destroy


def test_a_destroyed_machine_leaves_the_list_and_destroying_it_again_succeeds(rig: Rig) -> None:
    id = rig.rent()
    rig.after(BOOT_S)

    rig.market.destroy(id)
    rig.after(BOOT_S)
    rig.market.destroy(id)

    assert rig.market.list() == []
    assert rig.market.get(id) is None


def test_a_destroyed_machine_stops_billing(rig: Rig) -> None:
    id = rig.rent()
    contract = rig.sim.contract_of("one")
    rig.after(600)
    rig.market.destroy(id)
    bill = rig.sim.billed(contract, rig.now)

    rig.after(3600)

    assert sum(bill.values()) > 0
    assert rig.sim.billed(contract, rig.now) == bill


# --- money


def test_what_was_shown_is_what_is_billed(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]
    rig.rent(offer)
    contract = rig.sim.contract_of("one")
    rig.after(30)
    before = rig.sim.billed(contract, rig.now)

    rig.after(3600)

    after = rig.sim.billed(contract, rig.now)
    grown = {kind: usd - before.get(kind, Decimal(0)) for kind, usd in after.items()}
    assert abs(grown["gpu"] - offer.gpu_usd_per_hour) <= 2 * MICRO
    assert abs(grown["disk"] - offer.disk_usd_per_hour(64)) <= 2 * MICRO
    assert set(grown) == {"gpu", "disk"}


def test_a_stopped_machine_bills_its_disk_only(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]
    rig.rent(offer)
    contract = rig.sim.contract_of("one")
    rig.after(BOOT_S)
    rig.after(20)
    rig.sim.outbid(contract, rig.now)
    stopped = rig.sim.billed(contract, rig.now)

    rig.after(3600)

    later = rig.sim.billed(contract, rig.now)
    assert later["gpu"] == stopped["gpu"]
    assert abs(later["disk"] - stopped["disk"] - offer.disk_usd_per_hour(64)) <= 2 * MICRO


def test_the_charges_are_the_bill_to_the_micro_dollar_or_there_is_no_bill(rig: Rig) -> None:
    rig.rent()
    contract = rig.sim.contract_of("one")
    rig.after(1800)
    rig.sim.traffic(contract, 123_456_789, 987_654_321, rig.now)

    charges = rig.market.charges(START - HOUR, rig.now + HOUR)

    if charges is not None:
        charged: dict[str, Decimal] = {}
        for charge in charges:
            charged[charge.kind] = charged.get(charge.kind, Decimal(0)) + Decimal(charge.amount_usd)
        assert charged == rig.sim.billed(contract, rig.now)


def test_the_credit_is_money_or_untold(rig: Rig) -> None:
    credit = rig.market.credit_usd()

    assert credit is None or Decimal(credit) == 250


def test_a_journalled_market_bills_on_as_if_nothing_had_happened(alone: Rig) -> None:
    alone.rent()
    contract = alone.sim.contract_of("one")
    alone.after(30)
    plain = json.loads(json.dumps(alone.sim.to_json()))
    again = type(alone.sim).from_json(plain, rng=random.Random(1))
    alone.after(30)
    again.tick(alone.now)

    assert again.billed(contract, alone.now) == alone.sim.billed(contract, alone.now)
    assert again.to_json() == alone.sim.to_json()
