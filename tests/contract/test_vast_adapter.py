"""What only Vast.ai has: bids, pages, two sources of a machine's state, a bill by kind, two kinds of 429."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from common.adapters.vast import Vast
from common.domain.offer import Offer, Wanted
from common.errors import (
    MarketError,
    MarketRefused,
    QuotaExceeded,
    Throttled,
)
from common.ports import Launch
from infra.demo.vast import INTERVALS, VastSim
from tests.hand_cranked import SimTransport

START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
H100 = Wanted(gpu="H100 SXM", disk_gb=64)


class Market:
    """The adapter over the simulator, on a clock of its own."""

    def __init__(self, key: str = "sim-key", **intervals: float) -> None:
        self.now = START
        self.sim = VastSim(rng=random.Random(1), api_key="sim-key", intervals=intervals)
        self.vast = Vast(key, base_url="http://vast.sim", transport=SimTransport(self), wait=self.after)

    def rent(self, offer: Offer | None = None, label: str = "one", bid: str | None = None) -> str:
        launch = Launch(label=label, image="i", disk_gb=64, env={"A": "b"}, start_script="true", bid_usd_per_hour=bid)
        return self.vast.create(offer or self.vast.search(H100)[0], launch)

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)


@pytest.fixture
def market() -> Iterator[Market]:
    made = Market()
    yield made
    made.vast.close()


def test_a_refusal_that_leaves_a_machine_behind_names_it(market: Market) -> None:
    with pytest.raises(MarketRefused) as refused:
        market.rent(bid="0.01")

    (left,) = market.vast.list()
    assert refused.value.provider_id == left.provider_id
    assert left.status == "stopped"


def test_a_rate_limit_is_a_definite_refusal_with_its_interval() -> None:
    market = Market(**INTERVALS)
    offers = market.vast.search(H100)
    market.rent(offers[0])

    with pytest.raises(Throttled) as refused:
        market.rent(offers[1], label="two")

    assert refused.value.retry_after_s == 4.5
    assert len(market.sim.contracts()) == 1
    market.vast.close()


def test_a_used_up_search_quota_is_never_a_throttle(market: Market) -> None:
    market.sim.search_quota_used = True

    with pytest.raises(QuotaExceeded):
        market.vast.search(H100)


def test_the_pages_of_one_listing_keep_the_vendors_interval() -> None:
    market = Market(list=INTERVALS["list"])
    for n, offer in enumerate(market.vast.search(Wanted(gpu="RTX 4090")) + market.vast.search(H100)):
        market.rent(offer, label=f"l{n}")
    began = market.now

    listed = market.vast.list()

    assert len(listed) > 25
    assert 1.0 <= (market.now - began).total_seconds() < 2.0
    market.vast.close()


def test_a_listing_has_every_page(market: Market) -> None:
    offers = [offer for gpu in ("RTX 4090", "RTX 3090", "H100 SXM", "A100 SXM4", "RTX 5090", "L40S") for offer in
              market.vast.search(Wanted(gpu=gpu))][:53]  # fmt: skip
    for n, offer in enumerate(offers):
        market.rent(offer, label=f"l{n}")

    listed = market.vast.list()

    assert sorted(row.label for row in listed) == sorted(f"l{n}" for n in range(53))


def test_the_status_follows_the_contract_through_its_life(market: Market) -> None:
    id = market.rent()
    assert market.vast.get(id).status == "starting"  # type: ignore[union-attr]
    market.after(5)
    running = market.vast.get(id)
    assert running
    assert (running.status, running.ssh_host) == ("running", "127.0.0.1")
    market.sim.exited(int(id), market.now)
    assert market.vast.get(id).status == "exited"  # type: ignore[union-attr]
    market.sim.outbid(int(id), market.now)
    assert market.vast.get(id).status == "stopped"  # type: ignore[union-attr]


def test_the_charges_are_the_bill_to_the_micro_dollar_across_an_hour(market: Market) -> None:
    id = market.rent()
    market.after(47.123)
    market.sim.traffic(int(id), 123_456_789, 987_654_321, market.now)
    market.after(1800)
    market.sim.outbid(int(id), market.now)
    market.after(600)

    charged: dict[str, Decimal] = {}
    for charge in market.vast.charges(START - timedelta(hours=1), market.now + timedelta(hours=1)):
        charged[charge.kind] = charged.get(charge.kind, Decimal(0)) + Decimal(charge.amount_usd)

    assert charged == market.sim.billed(int(id), market.now)
    assert Decimal(market.vast.credit_usd()) == Decimal(250) - sum(charged.values())


def test_a_charge_that_is_dated_by_its_first_day_is_asked_for_late_on_that_day(market: Market) -> None:
    """The vendor's rows are of contracts, from midnight to midnight."""
    id = market.rent()
    market.after(3600)

    charges = market.vast.charges(START + timedelta(hours=2), market.now + timedelta(hours=1))

    midnight = START.replace(hour=0, minute=0, second=0)
    assert {(charge.provider_id, charge.start, charge.end) for charge in charges} == {(id, midnight, midnight)}


def test_the_last_page_of_charges_may_name_an_empty_token() -> None:
    assert _answering({"results": [], "next_token": ""}).charges(START, START) == []


# --- listings and rows that cannot be believed

ROW = {"id": 1, "label": "x", "actual_status": "running", "cur_state": "running", "intended_status": "running"}


def _answering(body: Any) -> Vast:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=body))
    return Vast("k", base_url="http://vast.sim", transport=transport, wait=lambda _: None)


@pytest.mark.parametrize(
    "page",
    [
        {"success": True, "instances": None},
        {"success": True, "instances": [None]},
        {"success": True, "instances": [{"label": "no id"}]},
        {"success": True, "instances": [ROW], "next_token": "1"},
        {"success": True, "instances": [ROW], "next_token": None, "total_instances": 2},
        {"success": False, "error": "oops"},
    ],
    ids=["null", "null row", "no id", "never ends", "does not add up", "success false"],
)
def test_a_listing_that_is_not_whole_is_no_listing(page: dict[str, Any]) -> None:
    vast = _answering(page)

    with pytest.raises(MarketError):
        vast.list()
    vast.close()


@pytest.mark.parametrize("price", [0, -1, "1.0", None, 1e9])
def test_a_poisoned_row_is_dropped_and_the_others_are_kept(price: Any) -> None:
    good = {"id": 1, "machine_id": 2, "gpu_name": "H100 SXM", "num_gpus": 1, "gpu_ram": 81559}
    rows = [{**good, "dph_base": price, "storage_cost": 0.1}, {**good, "dph_base": 2.0, "storage_cost": 0.1}]
    vast = _answering({"offers": rows})

    (offer,) = vast.search(H100)

    assert offer.gpu_usd_per_hour == 2
    vast.close()
