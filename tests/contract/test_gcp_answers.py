"""Google's refusals, answers that say nothing, and credentials: each has its own error, and none is absence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from common.adapters.gcp import ANONYMOUS, GcpCompute, compute
from common.domain.standby_price import Terms, standby_offer
from common.errors import (
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketSilent,
    MarketUnknown,
    NoCredit,
    OfferGone,
    QuotaExceeded,
    SettingError,
    Throttled,
)
from common.ports import Standbys
from infra.demo.gcp.compute import ComputeSim
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.wire import Answer, Request, json_answer
from tests.gcp_rig import (
    ADDRESS,
    KEY_ID,
    LABEL,
    PROJECT,
    REGION,
    START,
    ZONE,
    Carrier,
    Handle,
    Rig,
    launch_of,
    offers,
    service_account_key,
)

pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


@pytest.fixture
def alone() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


# --- refusals and answers that say nothing


CALLS: dict[str, Callable[[Standbys], Any]] = {
    "list": lambda market: market.list(),
    "get": lambda market: market.get(f"{ZONE}/{LABEL}"),
    "destroy": lambda market: market.destroy(f"{ZONE}/{LABEL}"),
    "create": lambda market: market.create(offers()[0], launch_of()),
    "start": lambda market: market.start(f"{ZONE}/{LABEL}"),
    "detach": lambda market: market.detach(f"{ZONE}/{LABEL}"),
    "operation": lambda market: market.operation(f"zones/{ZONE}/operations/operation-1"),
    "operations": lambda market: market.operations(f"{ZONE}/{LABEL}"),
    "reserve": lambda market: market.reserve(ADDRESS, REGION),
    "release": lambda market: market.release(ADDRESS, REGION),
    "addresses": lambda market: market.addresses(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_key_is_named_by_every_call_and_tried_once(alone: Rig, call: str) -> None:
    with pytest.raises(MarketKeyRefused):
        CALLS[call](alone.with_key("another"))

    assert len(alone.sent) == 1


@pytest.mark.parametrize("call", CALLS)
def test_every_call_has_its_time(alone: Rig, call: str) -> None:
    alone.running()
    alone.market.reserve(ADDRESS, REGION)
    alone.after(OPERATION_S)
    assert alone.carrier
    alone.carrier.timeouts_s.clear()

    if call == "create":
        alone.rent("dumont-abc123-i1-9-00000000")
    else:
        CALLS[call](alone.market)

    (timeout_s,) = alone.carrier.timeouts_s  # one request each; what went by since the call began is taken off
    assert timeout_s
    assert 0 < timeout_s <= compute.CALL_TIMEOUT_S


def _say(status: int, body: bytes, kind: str = "application/json", **headers: str) -> Handle:
    return lambda _: Answer(status, body, kind, headers)


def _raise(error: Exception) -> Handle:
    def say(_: Request) -> Answer:
        raise error

    return say


def _refusal(status: int, reason: str, message: str = "no") -> Handle:
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message, "domain": "global"}]}
    return lambda _: json_answer(status, {"error": error})


NOTHING: dict[str, Handle] = {
    "html": _say(200, b"<html>maintenance</html>", "text/html"),
    "html 404": _say(404, b"<html>not found</html>", "text/html"),
    "html 502": _say(502, b"<html>bad gateway</html>", "text/html"),
    "html 403": _say(403, b"<html>a proxy says no</html>", "text/html"),
    "empty": _say(200, b""),
    "empty 404": _say(404, b""),
    "null": _say(200, b"null"),
    "a list": _say(200, b"[]"),
    "an empty object": _say(200, b"{}"),
    "something else": _say(200, b'{"success": false, "error": "oops"}'),
    "truncated": _say(200, b'{"kind": "compute#instance", "name": "x'),
    "wrong types": _say(200, b'{"kind": 7, "name": [], "items": 4, "status": {}}'),
    "404 of a list": _say(404, b"[]"),
    "404 of null": _say(404, b"null"),
    "404 of another thing": _refusal(404, "notFound", "The resource 'projects/wrong' was not found"),
    "500": _refusal(500, "backendError"),
    "503": _refusal(503, "backendError"),
    "redirect": _say(302, b"{}", location="http://google.sim/elsewhere"),
    "timeout": _raise(requests.ReadTimeout("slow")),
    "refused": _raise(requests.ConnectionError("no")),
}


@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_without_information_is_never_absence_or_success(alone: Rig, answer: str) -> None:
    ended = _ends(alone.answering(NOTHING[answer]))

    definite = ("list", "create", "operations", "addresses") if answer == "404 of another thing" else ()
    unknown = MarketSilent if answer == "timeout" else MarketUnknown
    assert ended == {call: MarketRefused if call in definite else unknown for call in CALLS}


def _ends(market: Standbys) -> dict[str, type[MarketError] | None]:
    """The error that each call ends with; None = it was taken for success or absence."""
    ended: dict[str, type[MarketError] | None] = dict.fromkeys(CALLS)
    for name, call in CALLS.items():
        try:
            call(market)
        except MarketError as error:
            ended[name] = type(error)
    return ended


REFUSALS: dict[str, tuple[Handle, type[MarketError]]] = {
    "forbidden": (_refusal(403, "forbidden", "Required 'compute.instances.list' permission"), MarketKeyRefused),
    "off": (_refusal(403, "accessNotConfigured", "Compute Engine API has not been used"), MarketKeyRefused),
    "billing": (_refusal(403, "UREQ_PROJECT_BILLING_NOT_FOUND", "requires billing to be enabled"), NoCredit),
    "quota": (_refusal(403, "quotaExceeded", "Quota 'CPUS' exceeded"), QuotaExceeded),
    "too often": (_refusal(403, "rateLimitExceeded", "Rate Limit Exceeded"), Throttled),
    "429": (_refusal(429, "rateLimitExceeded"), Throttled),
    "429 html": (_say(429, b"<html>slow down</html>", "text/html"), Throttled),
    "no room": (_refusal(503, "ZONE_RESOURCE_POOL_EXHAUSTED"), OfferGone),
    "bad": (_refusal(400, "invalid"), MarketRefused),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_definite_refusal_has_its_own_error(alone: Rig, refusal: str) -> None:
    say, kind = REFUSALS[refusal]

    assert _ends(alone.answering(say)) == dict.fromkeys(CALLS, kind)


@pytest.mark.parametrize("call", CALLS)
def test_a_redirect_is_not_followed(alone: Rig, call: str) -> None:
    asked: list[str] = []

    def elsewhere(request: Request) -> Answer:
        asked.append(request.path)
        return Answer(302, b"{}", headers={"Location": "http://google.sim/elsewhere"})

    with pytest.raises(MarketUnknown):
        CALLS[call](alone.answering(elsewhere))

    assert len(asked) == 1


def test_how_long_to_wait_is_googles_word(alone: Rig) -> None:
    with pytest.raises(Throttled) as raised:
        alone.answering(_say(429, b"{}", **{"Retry-After": "17"})).list()

    assert raised.value.retry_after_s == 17


def test_googles_own_limit_is_met_as_throttled() -> None:
    rig = Rig()
    rig.sim._requests_per_minute = 3

    with pytest.raises(Throttled):
        for _ in range(4):
            rig.market.list()
    rig.close()


# --- credentials


@pytest.mark.parametrize("text", ["/no/such/file", "{}", "{", '{"type": "authorized_user"}', "[]", '{"type": 1}'])
def test_a_key_that_is_none_stops_the_start(text: str) -> None:
    with pytest.raises(SettingError, match="GCP_CREDENTIALS"):
        GcpCompute(text, project="p")


def test_nobody_is_for_a_simulation_on_this_machine_only() -> None:
    GcpCompute(ANONYMOUS, project="p", base_url="http://127.0.0.1:1")
    for url in (compute.ENDPOINT, "https://compute.example.com", "http://127.0.0.1.example.com"):
        with pytest.raises(SettingError):
            GcpCompute(ANONYMOUS, project="p", base_url=url)


def test_nobody_is_enough_where_no_key_is_asked_for() -> None:
    sim = ComputeSim(rng=random.Random(1))
    carrier = Carrier(lambda request: sim.handle(request, START))
    market = GcpCompute(ANONYMOUS, project=PROJECT, base_url="http://127.0.0.1:1", carrier=carrier)

    assert market.list() == []
    assert "Authorization" not in carrier.sent[0].headers
    market.close()


def test_a_key_may_be_a_file_and_names_its_project(tmp_path: Any, alone: Rig) -> None:
    (tmp_path / "key.json").write_text(service_account_key(KEY_ID))
    market = GcpCompute(str(tmp_path / "key.json"), base_url=alone.url, carrier=alone.carrier)

    assert market.list() == []
    market.close()


def test_a_project_that_nobody_names_stops_the_start() -> None:
    with pytest.raises(SettingError, match="GCP_PROJECT"):
        GcpCompute(ANONYMOUS, base_url="http://127.0.0.1:1")


def test_a_broken_private_key_is_a_setting(alone: Rig) -> None:
    broken = json.dumps(json.loads(service_account_key(KEY_ID)) | {"private_key": "x"})

    with pytest.raises(SettingError):
        GcpCompute(broken, base_url=alone.url, carrier=alone.carrier).list()


def test_a_standard_offer_is_priced_with_its_own_address() -> None:
    spot, standard = (standby_offer(Terms(zone=ZONE, model=model)) for model in ("spot", "standard"))  # type: ignore[arg-type]

    assert standard.gpu_usd_per_hour > spot.gpu_usd_per_hour
