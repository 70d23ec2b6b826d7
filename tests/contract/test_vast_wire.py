"""The simulator takes every request that the vendor's own client was recorded to send."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra.demo.vast import Request, VastSim

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RECORDED = json.loads((Path(__file__).parent / "vast_recorded.json").read_text())["requests"]
HEADERS = {"Authorization": "Bearer sim-key", "Content-Type": "application/json"}
SHAPES = {
    "/api/v0/bundles/": "offers",
    "/api/v0/search/asks/": "offers",
    "/api/v1/instances/": "instances",
    "/api/v0/users/current": "credit",
    "/api/v0/charges/": "results",
}


@pytest.fixture
def sim() -> VastSim:
    made = VastSim(rng=random.Random(1), api_key="sim-key", intervals={})
    made.handle(Request("PUT", "/api/v0/asks/7000/", {}, HEADERS, b'{"label": "one", "image": "i"}'), NOW)
    return made


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("recorded", RECORDED, ids=[f"{n}-{r['case']}" for n, r in enumerate(RECORDED)])
def test_a_recorded_request_is_accepted_with_the_vendors_shape(sim: VastSim, recorded: dict[str, Any]) -> None:
    path = recorded["path"].replace("9001", str(sim.contracts()[0].id))
    query = {name: _text(value) for name, value in recorded["query"].items()}
    body = json.dumps(recorded["body"]).encode() if recorded["body"] is not None else b""

    answer = sim.handle(Request(recorded["method"], path, query, HEADERS, body), NOW)

    parsed = json.loads(answer.body)
    assert answer.status == 200, parsed
    assert answer.content_type == "application/json"
    if path in SHAPES:
        assert SHAPES[path] in parsed
    elif isinstance(parsed, dict):
        assert parsed.get("success") is True or "instances" in parsed


def test_rows_carry_what_the_vendors_client_dies_without(sim: VastSim) -> None:
    rows = json.loads(sim.handle(Request("GET", "/api/v1/instances/", {}, HEADERS), NOW).body)["instances"]

    assert rows
    assert all(isinstance(row["start_date"], float) and isinstance(row["extra_env"], list) for row in rows)


def test_numbers_sent_as_text_are_numbers(sim: VastSim) -> None:
    body = json.dumps({"gpu_name": {"eq": "RTX_4090"}, "num_gpus": {"eq": "1"}, "dph_total": {"lte": "0.4"}}).encode()

    offers = json.loads(sim.handle(Request("POST", "/api/v0/bundles/", {}, HEADERS, body), NOW).body)["offers"]

    assert offers
    assert all(offer["gpu_name"] == "RTX 4090" and offer["dph_total"] <= 0.4 for offer in offers)


def test_the_money_of_an_offer_adds_up(sim: VastSim) -> None:
    offers = json.loads(sim.handle(Request("POST", "/api/v0/bundles/", {}, HEADERS, b"{}"), NOW).body)["offers"]

    for offer in offers:
        assert offer["dph_total"] == pytest.approx(offer["dph_base"] + offer["storage_total_cost"], rel=1e-9)
        assert offer["storage_total_cost"] == pytest.approx(offer["storage_cost"] * 5 / 720, rel=1e-9)


STRANGER = {"Authorization": "Bearer no"}


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "/api/v1/instances/", 403),
        (STRANGER, "/api/v1/instances/", 401),
        (STRANGER, "/api/v0/charges/", 404),
    ],
)
def test_a_missing_or_unknown_key_is_refused_as_the_vendor_does(
    sim: VastSim, headers: dict, path: str, status: int
) -> None:
    answer = sim.handle(Request("GET", path, {}, headers), NOW)

    assert (answer.status, json.loads(answer.body)["error"]) == (status, "auth_error")


def test_a_container_may_stop_itself_with_its_own_key_and_nothing_else(sim: VastSim) -> None:
    ids: list[int] = []
    for ask in (7001, 7002):
        answer = sim.handle(Request("PUT", f"/api/v0/asks/{ask}/", {}, HEADERS, b'{"label": "x"}'), NOW)
        assert answer.status == 200, answer.body
        ids.append(json.loads(answer.body)["new_contract"])
    own = {"Authorization": f"Bearer {sim.container_key(ids[0])}"}
    stop = b'{"state": "stopped"}'

    assert sim.handle(Request("PUT", f"/api/v0/instances/{ids[1]}/", {}, own, stop), NOW).status == 401
    assert sim.handle(Request("GET", "/api/v1/instances/", {}, own), NOW).status == 401
    assert sim.handle(Request("PUT", "/api/v0/asks/7003/", {}, own, b"{}"), NOW).status == 404
    assert sim.handle(Request("PUT", f"/api/v0/instances/{ids[0]}/", {}, own, stop), NOW).status == 200
    assert [contract.state for contract in sim.contracts()] == ["created", "stopped", "created"]
