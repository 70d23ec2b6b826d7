"""What Google's answers prove, the lost, the lying and the partial ones: Google's own client over the simulator."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from common.adapters.gcp import answers
from common.errors import (
    MarketRefused,
    MarketUnknown,
)
from infra.demo.wire import Answer, Request, json_answer
from tests.gcp_rig import (
    LABEL,
    PROJECT,
    ZONE,
    Rig,
    alone,
    launch_of,
    offers,
    rig,
)

__all__ = ["alone", "rig"]
pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


# --- lost and lying answers


def test_a_create_is_made_once_whatever_the_answer(alone: Rig) -> None:
    made: list[Request] = []

    def lose_the_answer(request: Request) -> Answer:
        made.append(request)
        alone.handle(request)
        raise requests.ReadTimeout("lost")

    with pytest.raises(MarketUnknown):
        alone.answering(lose_the_answer).create(alone.offer, launch_of())

    assert [request.method for request in made] == ["POST"]
    assert [row.label for row in alone.market.list()] == [LABEL]
    assert alone.newest(f"{ZONE}/{LABEL}").kind == "insert"  # found without its name


def test_a_repeated_create_would_make_no_second_machine(rig: Rig) -> None:
    """We never repeat one; what stands between us and Google might."""
    id = rig.rent()
    rig.after(1)

    assert rig.rent() == id
    assert len(rig.market.list()) == 1
    assert len(rig.market.operations(id)) == 1


def test_a_name_that_is_taken_names_the_machine_that_exists(alone: Rig) -> None:
    alone.rent()
    alone.sim.book.request_ids.clear()  # so much later that Google has forgotten the request

    with pytest.raises(MarketRefused) as refused:
        alone.rent()

    assert refused.value.provider_id == f"{ZONE}/{LABEL}"


def test_an_error_that_hides_a_created_machine_is_no_information(rig: Rig) -> None:
    rig.sim.creates_answer_500 = True

    with pytest.raises(MarketUnknown):
        rig.rent()

    assert [row.label for row in rig.market.list()] == [LABEL]


# --- listings


def test_a_listing_of_thirty_machines_over_zones_and_pages_is_whole(rig: Rig) -> None:
    rig.sim.page_rows = 7
    there = offers()
    labels = [f"dumont-abc123-i{n}-1-00000000" for n in range(30)]
    for n, label in enumerate(labels):
        rig.rent(label, there[n % len(there)])

    listed = rig.market.list()

    assert sorted(row.label for row in listed) == sorted(labels)
    assert len({row.provider_id.partition("/")[0] for row in listed}) > 3


def test_machines_of_others_in_the_project_are_nobodys_business(alone: Rig) -> None:
    alone.rent()
    body = {**json.loads(alone.sent[0].body), "name": "database"}
    path = f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"
    theirs = Request("POST", path, {}, alone.sent[0].headers, json.dumps(body).encode())
    assert alone.handle(theirs).status == 200

    assert [row.label for row in alone.market.list()] == [LABEL]


@pytest.mark.parametrize("place", [ZONE, "africa-south1-b"])
def test_a_listing_without_a_zone_is_no_listing(rig: Rig, place: str) -> None:
    rig.rent()
    rig.sim.unreachable.add(place)

    with pytest.raises(MarketUnknown):
        rig.market.list()


def test_addresses_without_a_region_are_no_listing(rig: Rig) -> None:
    rig.reserved()
    rig.sim.unreachable.add("africa-south1")

    with pytest.raises(MarketUnknown):
        rig.market.addresses()


def test_a_scope_that_only_warns_is_no_listing_either(alone: Rig) -> None:
    def with_a_warning(request: Request) -> Answer:
        body = json.loads(alone.handle(request).body)
        body["items"]["zones/us-east1-b"] = {"warning": {"code": "UNREACHABLE", "message": "x"}}
        return json_answer(200, body)

    with pytest.raises(MarketUnknown):
        alone.answering(with_a_warning).list()


def test_a_listing_that_names_what_it_could_not_reach_is_no_listing(alone: Rig) -> None:
    def without_a_warning(request: Request) -> Answer:
        return json_answer(200, json.loads(alone.handle(request).body) | {"unreachables": ["zones/us-east1-b"]})

    with pytest.raises(MarketUnknown):
        alone.answering(without_a_warning).list()


@pytest.mark.parametrize(
    "row", [{}, {"name": LABEL}, {"name": LABEL, "zone": "x/zones/z"}, {"zone": "z", "status": "RUNNING"}]
)
def test_a_listing_with_a_row_that_does_not_parse_is_no_listing(alone: Rig, row: dict[str, Any]) -> None:
    def with_a_bad_row(request: Request) -> Answer:
        body = json.loads(alone.handle(request).body)
        body["items"]["zones/us-east1-b"] = {"instances": [row]}
        return json_answer(200, body)

    with pytest.raises(MarketUnknown):
        alone.answering(with_a_bad_row).list()


def test_a_status_that_google_adds_is_unknown(alone: Rig) -> None:
    alone.running()

    def with_a_new_word(request: Request) -> Answer:
        return json_answer(200, json.loads(alone.handle(request).body) | {"status": "PONDERING"})

    found = alone.answering(with_a_new_word).get(f"{ZONE}/{LABEL}")
    assert found
    assert (found.status, found.message) == ("unknown", "PONDERING")


def test_pages_without_end_are_refused(alone: Rig) -> None:
    asked: list[Request] = []

    def for_ever(request: Request) -> Answer:
        asked.append(request)
        return json_answer(200, {"kind": "compute#instanceAggregatedList", "items": {}, "nextPageToken": "more"})

    with pytest.raises(MarketUnknown):
        alone.answering(for_ever).list()
    assert len(asked) == answers.PAGES_MAX + 1
