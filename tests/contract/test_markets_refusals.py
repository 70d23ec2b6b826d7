"""What every marketplace's adapter makes of refusals, and of answers that say nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from common.errors import (
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketSilent,
    MarketUnknown,
    Throttled,
)
from common.ports import Market
from tests.hand_cranked import SimTransport
from tests.market_rig import MARKETS, RTX_4090, START, Answers, Rig, alone, launch_of, rig

__all__ = ["alone", "rig"]


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
        rig.with_key("wrong").create(offer, launch_of("one"))

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


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("slow", [httpx.ReadTimeout("slow"), httpx.ConnectTimeout("slow")], ids=["answer", "way"])
def test_only_who_was_waited_for_in_vain_is_silent(alone: Rig, slow: httpx.HTTPError, call: str) -> None:
    _raises(alone, call, alone.answering(_raise(slow)), MarketSilent)
    refused = _raises(alone, call, alone.answering(NOTHING["refused"]), MarketUnknown)
    assert not isinstance(refused, MarketSilent)


@pytest.mark.parametrize("answer", NOTHING)
def test_a_create_answered_so_may_or_may_not_have_worked(alone: Rig, answer: str) -> None:
    offer = alone.market.search(RTX_4090)[0]

    with pytest.raises(MarketUnknown):
        alone.answering(NOTHING[answer]).create(offer, launch_of("one"))


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
