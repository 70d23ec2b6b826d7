"""What every marketplace must do: one suite over each adapter and its simulator, in process and over HTTP.

A new marketplace is a row of MARKETS; what only one vendor has stands in its own tests.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.domain.offer import Offer, Wanted
from common.errors import (
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketUnknown,
    NoCredit,
    OfferGone,
    Throttled,
)
from common.ports import Launch, Market
from infra.demo.http_face import HttpFace
from infra.demo.tensordock import TensorDockSim
from infra.demo.vast import INTERVALS, VastSim
from tests.hand_cranked import SimTransport

START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
RTX_4090 = Wanted(gpu="RTX 4090", disk_gb=64)
KEY = "sim-key"
HOUR = timedelta(hours=1)
MICRO = Decimal("0.000001")
BOOT_S = 20.0
"""No simulated machine takes longer."""
Answers = Callable[[httpx.Request], httpx.Response]


def _vast(limited: bool) -> VastSim:
    return VastSim(rng=random.Random(1), api_key=KEY, intervals=INTERVALS if limited else {})


def _tensordock(limited: bool) -> TensorDockSim:
    limits = {} if limited else {"requests_per_minute": None}
    return TensorDockSim(rng=random.Random(1), api_key=KEY, **limits)


MARKETS: dict[str, tuple[Callable[..., Market], Callable[[bool], Any]]] = {
    "vast": (Vast, _vast),
    "tensordock": (TensorDock, _tensordock),
}


class Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Silence."""


class Rig:
    """One marketplace: the adapter over its simulator, on a clock of its own."""

    def __init__(self, name: str, *, over_http: bool = False, limited: bool = False) -> None:
        self.name, self.now = name, START
        self.adapter, make = MARKETS[name]
        self._more = {"wait": self.after} if self.adapter is Vast else {}
        self.sim = make(limited)
        self._stack = ExitStack()
        self.url = self._serve() if over_http else "http://market.sim"
        self._transport = None if over_http else SimTransport(self)
        self.market = self.with_key(KEY)

    def _serve(self) -> str:
        face = HttpFace(self.sim, clock=lambda: self.now, lock=threading.Lock())
        server = make_server("127.0.0.1", 0, face, threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return f"http://127.0.0.1:{server.port}"

    def with_key(self, key: str) -> Market:
        return self._made(key, self._transport)

    def answering(self, answers: Answers) -> Market:
        """The adapter of an account whose marketplace answers so."""
        return self._made(KEY, httpx.MockTransport(answers))

    def _made(self, key: str, transport: httpx.BaseTransport | None) -> Market:
        made = self.adapter(key, base_url=self.url, transport=transport, **self._more)
        self._stack.callback(made.close)
        return made

    def rent(self, offer: Offer | None = None, label: str = "one", **more: Any) -> str:
        return self.market.create(offer or self.market.search(RTX_4090)[0], _launch(label, **more))

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)

    def take(self, offer: Offer) -> None:
        """Somebody else rents what the offer stands for."""
        while True:
            try:
                self.rent(offer, label="somebody-else")
            except OfferGone:
                return

    def close(self) -> None:
        self._stack.close()


def _launch(label: str, **more: Any) -> Launch:
    return Launch(label=label, image="i", disk_gb=64, env={"A": "it's b"}, start_script="echo up\n", **more)


@pytest.fixture(params=[*MARKETS, *(f"{name} over http" for name in MARKETS)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    name, _, over_http = request.param.partition(" ")
    made = Rig(name, over_http=bool(over_http))
    yield made
    made.close()


@pytest.fixture(params=MARKETS)
def alone(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(request.param)
    yield made
    made.close()


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
        alone.answering(lose_the_answer).create(offer, _launch("one"))

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


# --- refusals and answers that say nothing


CALLS: dict[str, Callable[[Market], Any]] = {
    "search": lambda market: market.search(RTX_4090),
    "list": lambda market: market.list(),
    "get": lambda market: market.get("1"),
    "destroy": lambda market: market.destroy("1"),
    "credit": lambda market: market.credit_usd(),
    "charges": lambda market: market.charges(START, START),
}
NO_CALL_FOR = {("tensordock", "credit"), ("tensordock", "charges")}
"""What a marketplace has no call for is answered with None, and asks nobody."""


def _raises(rig: Rig, call: str, market: Market, kind: type[MarketError]) -> MarketError | None:
    """The error that a call ends with; None for a call that the marketplace does not have."""
    if (rig.name, call) in NO_CALL_FOR:
        assert CALLS[call](market) is None
        return None
    with pytest.raises(kind) as raised:
        CALLS[call](market)
    return raised.value


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_key_is_named_by_every_call(rig: Rig, call: str) -> None:
    _raises(rig, call, rig.with_key("wrong"), MarketKeyRefused)


def test_a_wrong_key_rents_nothing(rig: Rig) -> None:
    offer = rig.market.search(RTX_4090)[0]

    with pytest.raises(MarketKeyRefused):
        rig.with_key("wrong").create(offer, _launch("one"))

    assert rig.market.list() == []


def _raise(error: Exception) -> Answers:
    def answers(_: httpx.Request) -> httpx.Response:
        raise error

    return answers


NOTHING: dict[str, Answers] = {
    "html": lambda _: httpx.Response(200, text="<html>maintenance</html>"),
    "html 404": lambda _: httpx.Response(404, text="<html>not found</html>"),
    "html 502": lambda _: httpx.Response(502, text="<html>bad gateway</html>"),
    "empty": lambda _: httpx.Response(200, content=b""),
    "empty 404": lambda _: httpx.Response(404, content=b""),
    "null": lambda _: httpx.Response(200, text="null"),
    "a list": lambda _: httpx.Response(200, text="[]"),
    "truncated": lambda _: httpx.Response(200, text='{"instances": [{"id": 1'),
    "500": lambda _: httpx.Response(500, json={"success": False, "error": "oops"}),
    "503 text": lambda _: httpx.Response(503, text="try later"),
    "redirect": lambda _: httpx.Response(302, json={}),
    "timeout": _raise(httpx.ReadTimeout("slow")),
    "refused": _raise(httpx.ConnectError("no")),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_without_information_is_never_absence_or_success(alone: Rig, answer: str, call: str) -> None:
    _raises(alone, call, alone.answering(NOTHING[answer]), MarketUnknown)


@pytest.mark.parametrize("answer", NOTHING)
def test_a_create_answered_so_may_or_may_not_have_worked(alone: Rig, answer: str) -> None:
    offer = alone.market.search(RTX_4090)[0]

    with pytest.raises(MarketUnknown):
        alone.answering(NOTHING[answer]).create(offer, _launch("one"))


@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_with_status_200_is_neither_absence_nor_success(alone: Rig, call: str) -> None:
    body = {"success": False, "error": "oops", "msg": "something is wrong"}

    _raises(alone, call, alone.answering(lambda _: httpx.Response(200, json=body)), MarketRefused)


EMPTY_BODIES: list[Any] = [{}, {"success": True}, {"data": None}, {"data": {}}, {"instances": "none"}]


@pytest.mark.parametrize("body", EMPTY_BODIES, ids=json.dumps)
@pytest.mark.parametrize("call", ["list", "get", "search"])
def test_an_object_without_what_was_asked_for_is_no_information(alone: Rig, call: str, body: Any) -> None:
    market = alone.answering(lambda _: httpx.Response(200, json=body))

    with pytest.raises(MarketUnknown):
        CALLS[call](market)


@pytest.mark.parametrize("text", ["API requests too frequent", '{"detail": "slow down"}', "<html>429</html>", ""])
@pytest.mark.parametrize("call", CALLS)
def test_a_rate_limit_is_a_definite_refusal_whatever_its_body(alone: Rig, call: str, text: str) -> None:
    market = alone.answering(lambda _: httpx.Response(429, text=text))

    refused = _raises(alone, call, market, Throttled)

    assert refused is None or (isinstance(refused, Throttled) and refused.retry_after_s > 0)


@pytest.mark.parametrize("name", MARKETS)
def test_the_vendors_limit_is_met_as_throttled(name: str) -> None:
    rig = Rig(name, limited=True)

    with pytest.raises(Throttled):
        for _ in range(200):
            rig.market.list()
    rig.close()


ROWS: dict[str, Any] = {"null": None, "a text": "x", "a number": 1, "without an id": {"label": "x", "name": "x"}}


@pytest.mark.parametrize("row", ROWS)
def test_a_listing_with_a_row_that_does_not_parse_is_no_listing(alone: Rig, row: str) -> None:
    alone.rent()
    real = SimTransport(alone)

    def with_a_bad_row(request: httpx.Request) -> httpx.Response:
        body = json.loads(real.handle_request(request).content)
        (body["instances"] if "instances" in body else body["data"]["instances"]).append(ROWS[row])
        return httpx.Response(200, json=body)

    with pytest.raises(MarketError):
        alone.answering(with_a_bad_row).list()
