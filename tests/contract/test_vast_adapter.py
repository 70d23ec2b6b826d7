"""The Vast.ai adapter against the simulator's wire, and against answers that say nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from common.adapters.vast import Vast
from common.domain.offer import Offer, Wanted
from common.errors import (
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketUnknown,
    NoCredit,
    OfferGone,
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
        self.vast = Vast(key, base_url="http://vast.sim", transport=SimTransport(self))

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


def test_offers_come_cheapest_first_and_under_the_cap(market: Market) -> None:
    everything = market.vast.search(H100)
    cap = everything[3].usd_per_hour(64)

    found = market.vast.search(H100.model_copy(update={"max_usd_per_hour": cap}))

    prices = [offer.usd_per_hour(64) for offer in found]
    assert prices == sorted(prices)
    assert prices
    assert max(prices) <= cap


def test_offers_are_filtered_by_country(market: Market) -> None:
    found = market.vast.search(H100.model_copy(update={"regions": ("US",)}))

    assert found
    assert {offer.country for offer in found} == {"US"}


def test_a_taken_offer_is_gone(market: Market) -> None:
    offer = market.vast.search(H100)[0]
    market.rent(offer)

    with pytest.raises(OfferGone):
        market.rent(offer, label="two")


def test_no_credit_is_told_from_everything_else(market: Market) -> None:
    offer = market.vast.search(H100)[0]
    market.sim.set_credit("0")

    with pytest.raises(NoCredit):
        market.rent(offer)


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


def test_a_wrong_key_is_named_by_every_endpoint() -> None:
    market = Market(key="wrong")
    calls: tuple[Callable[[], object], ...] = (
        market.vast.list,
        lambda: market.vast.search(H100),
        lambda: market.vast.get("9001"),
        lambda: market.vast.destroy("9001"),
        lambda: market.vast.charges(START, START),
    )

    for call in calls:
        with pytest.raises(MarketKeyRefused):
            call()
    market.vast.close()


def test_what_is_gone_is_none_and_destroying_it_again_succeeds(market: Market) -> None:
    id = market.rent()
    assert market.vast.get(id)

    market.vast.destroy(id)
    market.vast.destroy(id)

    assert market.vast.get(id) is None
    assert market.vast.list() == []


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
    assert market.vast.get(id).status == "offline"  # type: ignore[union-attr]
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


def test_only_the_disk_bills_while_stopped_and_nothing_after_the_end(market: Market) -> None:
    id = int(market.rent())
    market.after(5)
    market.after(55)
    market.sim.outbid(id, market.now)
    stopped = market.sim.billed(id, market.now)
    market.after(3600)
    later = market.sim.billed(id, market.now)
    market.sim.lose(id, market.now)
    ended = market.sim.billed(id, market.now)
    market.after(3600)

    assert later["gpu"] == stopped["gpu"]
    assert later["disk"] > stopped["disk"]
    assert market.sim.billed(id, market.now) == ended


def test_a_journalled_market_bills_on_as_if_nothing_had_happened(market: Market) -> None:
    id = int(market.rent())
    market.after(30)
    again = VastSim.from_json(json.loads(json.dumps(market.sim.to_json())), rng=random.Random(1))
    market.after(30)
    again.tick(market.now)

    assert again.billed(id, market.now) == market.sim.billed(id, market.now)


# --- answers that say nothing

ROW = {"id": 1, "label": "x", "actual_status": "running", "cur_state": "running", "intended_status": "running"}
NOTHING: dict[str, Callable[[httpx.Request], httpx.Response]] = {
    "html": lambda _: httpx.Response(200, text="<html>maintenance</html>"),
    "html 502": lambda _: httpx.Response(502, text="<html>bad gateway</html>"),
    "empty": lambda _: httpx.Response(200, content=b""),
    "null": lambda _: httpx.Response(200, text="null"),
    "a list": lambda _: httpx.Response(200, text="[]"),
    "truncated": lambda _: httpx.Response(200, text='{"instances": [{"id": 1'),
    "500": lambda _: httpx.Response(500, json={"success": False, "error": "oops"}),
    "503 text": lambda _: httpx.Response(503, text="try later"),
    "redirect": lambda _: httpx.Response(302, json={}),
}


def _raise(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def handle(_: httpx.Request) -> httpx.Response:
        raise error

    return handle


NOTHING |= {"timeout": _raise(httpx.ReadTimeout("slow")), "refused": _raise(httpx.ConnectError("no"))}
CALLS: dict[str, Callable[[Vast], Any]] = {
    "list": lambda vast: vast.list(),
    "get": lambda vast: vast.get("1"),
    "destroy": lambda vast: vast.destroy("1"),
    "charges": lambda vast: vast.charges(START, START),
    "search": lambda vast: vast.search(H100),
    "credit": lambda vast: vast.credit_usd(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_without_information_is_never_absence_or_success(answer: str, call: str) -> None:
    vast = Vast("k", base_url="http://vast.sim", transport=httpx.MockTransport(NOTHING[answer]))

    with pytest.raises(MarketUnknown):
        CALLS[call](vast)
    vast.close()


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
    vast = Vast(
        "k", base_url="http://vast.sim", transport=httpx.MockTransport(lambda _: httpx.Response(200, json=page))
    )

    with pytest.raises(MarketError):
        vast.list()
    vast.close()


@pytest.mark.parametrize("price", [0, -1, "1.0", None, 1e9])
def test_a_poisoned_row_is_dropped_and_the_others_are_kept(market: Market, price: Any) -> None:
    good = {"id": 1, "machine_id": 2, "gpu_name": "H100 SXM", "num_gpus": 1, "gpu_ram": 81559}
    rows = [{**good, "dph_base": price, "storage_cost": 0.1}, {**good, "dph_base": 2.0, "storage_cost": 0.1}]
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json={"offers": rows}))
    vast = Vast("k", base_url="http://vast.sim", transport=answer)

    (offer,) = vast.search(H100)

    assert offer.gpu_usd_per_hour == 2
    vast.close()


def test_a_create_is_made_once_whatever_the_answer(market: Market) -> None:
    made: list[httpx.Request] = []

    def lose_the_answer(request: httpx.Request) -> httpx.Response:
        made.append(request)
        raise httpx.ReadTimeout("lost")

    offer = market.vast.search(H100)[0]
    vast = Vast("k", base_url="http://vast.sim", transport=httpx.MockTransport(lose_the_answer))
    with pytest.raises(MarketUnknown):
        vast.create(offer, Launch(label="l", image="i", disk_gb=8, env={}, start_script=""))

    assert len(made) == 1
    vast.close()
