"""What a market of standbys must do: the adapter, with Google's own client in it, over the simulator's two faces."""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import requests

from common.adapters.gcp import answers, compute, keys
from common.domain.offer import Wanted
from common.domain.standby_price import Terms
from common.errors import (
    InvalidInput,
    MarketError,
    MarketRefused,
    MarketUnknown,
    NotFound,
    OfferGone,
    QuotaExceeded,
)
from common.ports import Market, Standbys
from infra.demo.gcp.compute import ComputeSim
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.wire import Answer, Request, json_answer
from tests.gcp_rig import (
    ADDRESS,
    LABEL,
    MICRO,
    NOTICE_S,
    PROJECT,
    REGION,
    START,
    ZONE,
    Rig,
    launch_of,
    offers,
)

pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


@pytest.fixture(params=["near", "over http"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(over_http=request.param == "over http")
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


# --- a market, and what it is not


def test_it_is_a_market_of_standbys_without_gpus(alone: Rig) -> None:
    market: Market = alone.market

    assert isinstance(market, Standbys)
    assert market.search(Wanted(gpu="RTX 4090")) == []
    assert market.survey("RTX 4090").offers == ()
    assert market.credit_usd() is None
    assert market.charges(START, START) is None
    assert alone.sent == []


def test_importing_and_making_it_leaves_googles_client_out() -> None:
    check = (
        "import sys; from common.adapters.gcp import GcpCompute; "
        "GcpCompute('anonymous', project='p', base_url='http://127.0.0.1:1'); "
        "sys.exit(any(name.startswith(('google.cloud.compute', 'google.auth', 'requests')) for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", check], timeout=60, check=False).returncode == 0


def test_no_operation_is_waited_for() -> None:
    """The client's own waiting asks the real Google, whatever endpoint was set."""
    for module in (compute, answers, keys):
        source = inspect.getsource(module).partition('"""\n\nfrom')[2]
        assert ".result(" not in source
        assert ".wait(" not in source


# --- create


def test_what_was_created_is_listed_under_its_label_at_once(rig: Rig) -> None:
    id = rig.rent()

    (row,) = rig.market.list()
    assert (row.provider_id, row.label, row.status, row.in_full) == (id, LABEL, "starting", True)
    assert id == f"{ZONE}/{LABEL}"


def test_it_runs_later_with_an_address(rig: Rig) -> None:
    id = rig.running()

    found = rig.market.get(id)
    assert found
    assert found.ssh_host
    assert found.ssh_host.startswith("127.")
    assert found.ssh_port == 22
    assert [(one.kind, one.target, one.is_done, one.refusal) for one in rig.market.operations(id)] == [
        ("insert", LABEL, True, None)
    ]


@pytest.mark.parametrize("value", ["it's b", "two\nlines", 'say "hi" $HOME `x`', "", "a=b # c"])
def test_the_start_script_runs_with_its_environment_at_every_boot(alone: Rig, value: str) -> None:
    id = alone.running(env={"A": value, "B": "2"})
    alone.sim.preempt(LABEL, alone.now)
    alone.after(NOTICE_S)
    alone.market.start(id)
    alone.after(OPERATION_S)

    first, _, second = alone.sim.drain()
    assert (first.kind, first.label, first.onstart, first.env) == ("start", LABEL, "echo up\n", {"A": value, "B": "2"})
    assert second == first


def test_the_metadata_is_a_script_that_a_shell_runs(tmp_path: Any) -> None:
    launch = launch_of(env={"A": "it's\n'b'"}, start_script='printf "%s|%s" "$A" "$HOME"')
    script = compute.metadata(launch)["startup-script"]

    said = subprocess.run(["sh", "-c", script], env={"HOME": "/h"}, capture_output=True, text=True, check=True).stdout
    assert said == "it's\n'b'|/h"
    said = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
    assert said == "it's\n'b'|/root"


def test_a_spot_machine_is_asked_for_as_it_is_kept(alone: Rig) -> None:
    alone.rent()

    (asked,) = alone.sent
    body = json.loads(asked.body)
    assert (asked.method, asked.path) == ("POST", f"/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances")
    assert uuid.UUID(asked.query["requestId"]) == uuid.UUID(compute.request_id(LABEL))
    assert body["scheduling"] == {
        "provisioningModel": "SPOT",
        "instanceTerminationAction": "STOP",
        "automaticRestart": False,
        "onHostMaintenance": "TERMINATE",
    }
    (disk,) = body["disks"]
    assert (disk["boot"], disk["autoDelete"], disk["initializeParams"]["diskSizeGb"]) == (True, True, "30")
    assert disk["initializeParams"]["diskType"].endswith("/pd-balanced")
    assert body["machineType"] == f"zones/{ZONE}/machineTypes/e2-small"
    assert body["tags"] == {"items": ["dumont-standby"]}
    assert "serviceAccounts" not in body
    assert "natIP" not in body["networkInterfaces"][0]["accessConfigs"][0]


def test_on_demand_is_the_offers_word(alone: Rig) -> None:
    dear = next(offer for offer in offers() if "/standard/" in offer.offer_id)
    id = alone.running(offer=dear)
    alone.sim.preempt(LABEL, alone.now)

    assert json.loads(alone.sent[0].body)["scheduling"]["provisioningModel"] == "STANDARD"
    assert alone.status(id) == "running"  # nobody takes it back


@pytest.mark.parametrize(
    ("label", "change"),
    [
        ("somebody-else", {}),
        ("dumont-Upper", {}),
        ("dumont-" + "x" * 57, {}),
        ("dumont-ends-", {}),
        (LABEL, {"image": "nvidia/cuda:12"}),
    ],
)
def test_what_google_would_not_take_or_we_not_find_is_refused_without_a_call(
    alone: Rig, label: str, change: dict[str, Any]
) -> None:
    with pytest.raises(MarketRefused):
        alone.rent(label, **change)

    assert alone.sent == []


def test_another_markets_offer_is_refused_without_a_call(alone: Rig) -> None:
    for change in ({"provider": "vast"}, {"offer_id": "4711"}):
        with pytest.raises(MarketRefused):
            alone.rent(offer=alone.offer.model_copy(update=change))

    assert alone.sent == []


def test_a_price_above_the_cap_is_not_created(alone: Rig) -> None:
    price = alone.offer.usd_per_hour(30)

    with pytest.raises(OfferGone):
        alone.rent(max_usd_per_hour=str(price - MICRO))
    assert alone.sent == []
    assert alone.rent(max_usd_per_hour=str(price))


def test_a_zone_that_is_none_is_a_definite_refusal(alone: Rig) -> None:
    offer = alone.offer.model_copy(update={"offer_id": Terms(zone="mars-north1-a").offer_id})

    with pytest.raises(MarketRefused):
        alone.rent(offer=offer)


# --- stockout, quota, slowness


def test_a_zone_without_room_is_told_by_the_operation_and_leaves_nothing(rig: Rig) -> None:
    rig.sim.stockout(ZONE, rig.now + timedelta(hours=1))
    id = rig.rent()
    assert rig.status(id) == "starting"
    assert not rig.newest(id).is_done

    rig.after(OPERATION_S)

    ended = rig.newest(id)
    assert (ended.kind, ended.is_done) == ("insert", True)
    assert isinstance(ended.refusal, OfferGone)
    assert rig.status(id) is None
    bill = rig.sim.charges(rig.now)
    rig.after(3600)
    assert rig.sim.charges(rig.now) == bill
    assert [effect.kind for effect in rig.sim.drain()] == []


def test_another_zone_has_room(rig: Rig) -> None:
    rig.sim.stockout(ZONE, rig.now + timedelta(hours=1))
    elsewhere = next(offer for offer in offers() if offer.machine_id != ZONE)

    rig.running(offer=elsewhere)


def test_a_quota_is_told_at_once_and_nothing_is_made(rig: Rig) -> None:
    rig.sim.quota(1)
    rig.rent()

    with pytest.raises(QuotaExceeded):
        rig.rent("dumont-abc123-i2-1-00000000")

    assert [row.label for row in rig.market.list()] == [LABEL]


def test_a_slow_operation_is_not_done_and_is_looked_at_by_name(rig: Rig) -> None:
    rig.sim.slow(300)
    id = rig.rent()
    rig.after(200)

    name = rig.newest(id).name
    assert name.startswith(f"zones/{ZONE}/operations/")
    assert (rig.status(id), rig.market.operation(name)) == ("starting", rig.newest(id))
    rig.after(100)
    found = rig.market.operation(name)
    assert found
    assert found.is_done
    assert rig.status(id) == "running"


def test_an_operation_that_google_no_longer_knows_is_none(rig: Rig) -> None:
    assert rig.market.operation(f"zones/{ZONE}/operations/operation-1") is None
    assert rig.market.operation(f"regions/{REGION}/operations/operation-1") is None
    for name in ("", "operation-1", "zones/a/b/c", "global/x/operations/y"):
        with pytest.raises(InvalidInput):
            rig.market.operation(name)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", OfferGone),
        ("QUOTA_EXCEEDED", QuotaExceeded),
        ("RESOURCE_NOT_FOUND", MarketRefused),
        ("INTERNAL_ERROR", MarketRefused),
    ],
)
def test_an_operation_that_fails_later_is_data(alone: Rig, code: str, kind: type[MarketError]) -> None:
    alone.sim.book.fails_later["insert"] = (code, "no", 503)
    id = alone.rent()
    alone.after(OPERATION_S)

    refusal = alone.newest(id).refusal
    assert type(refusal) is kind
    assert code in str(refusal)
    assert alone.market.get(id) is None


# --- preemption


def test_a_preempted_machine_is_stopped_by_google_and_starts_again_on_its_disk(rig: Rig) -> None:
    ip = rig.reserved()
    id = rig.running(address=ip)
    rig.sim.drain()

    rig.sim.preempt(LABEL, rig.now)
    assert rig.status(id) == "stopped"
    assert rig.sim.drain() == []  # half a minute is its own
    rig.after(NOTICE_S)
    assert [effect.kind for effect in rig.sim.drain()] == ["stop"]
    assert (rig.newest(id).kind, rig.newest(id).is_done) == ("preempted", True)

    name = rig.market.start(id)
    assert rig.status(id) == "starting"
    rig.after(OPERATION_S)
    assert rig.status(id) == "running"
    assert [effect.kind for effect in rig.sim.drain()] == ["start"]
    assert [one.kind for one in rig.market.operations(id)] == ["start", "preempted", "insert"]
    assert (found := rig.market.operation(name)) and found.is_done
    assert (row := rig.market.get(id)) and row.ssh_host == ip


def test_a_start_without_room_fails_later_and_keeps_the_disk(rig: Rig) -> None:
    id = rig.running()
    rig.sim.preempt(LABEL, rig.now)
    rig.after(NOTICE_S)
    rig.sim.stockout(ZONE, rig.now + timedelta(hours=1))

    name = rig.market.start(id)
    rig.after(OPERATION_S)

    ended = rig.market.operation(name)
    assert ended
    assert isinstance(ended.refusal, OfferGone)
    assert rig.status(id) == "stopped"


def test_a_start_in_its_last_half_minute_is_refused(rig: Rig) -> None:
    id = rig.running()
    rig.sim.preempt(LABEL, rig.now)

    with pytest.raises(MarketRefused):
        rig.market.start(id)


def test_a_start_of_a_running_machine_is_harmless(rig: Rig) -> None:
    id = rig.running()
    rig.sim.drain()

    rig.market.start(id)
    rig.after(OPERATION_S)

    assert rig.status(id) == "running"
    assert rig.sim.drain() == []


def test_a_machine_that_is_gone_cannot_be_started(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.market.start(f"{ZONE}/{LABEL}")


def test_a_machine_that_switched_itself_off_is_stopped_and_not_preempted(rig: Rig) -> None:
    id = rig.running()
    rig.sim.shut_down(id, rig.now)

    assert rig.status(id) == "stopped"
    assert [one.kind for one in rig.market.operations(id)] == ["insert"]


# --- destroy


def test_a_destroyed_machine_leaves_the_list_and_destroying_it_again_succeeds(rig: Rig) -> None:
    id = rig.running()

    assert rig.market.destroy(id)
    assert rig.status(id) == "stopped"  # only a later listing proves its end
    rig.after(OPERATION_S)

    assert rig.status(id) is None
    assert not rig.market.destroy(id)
    assert rig.sim.drain()[-1].kind == "vanish"


def test_a_delete_that_fails_later_leaves_a_machine_that_is_still_told(rig: Rig) -> None:
    id = rig.running()
    rig.sim.book.fails_later["delete"] = ("INTERNAL_ERROR", "no", 500)
    rig.market.destroy(id)
    rig.after(OPERATION_S)

    assert rig.status(id) == "stopped"
    assert isinstance(rig.newest(id).refusal, MarketRefused)
    rig.market.destroy(id)
    rig.after(OPERATION_S)
    assert rig.status(id) is None


def test_a_delete_that_is_answered_500_is_no_information(rig: Rig) -> None:
    id = rig.running()
    rig.sim.deletes_fail = 1

    with pytest.raises(MarketUnknown):
        rig.market.destroy(id)

    assert rig.status(id) == "running"


def test_a_machine_may_be_destroyed_while_it_is_being_created(rig: Rig) -> None:
    id = rig.rent()
    rig.after(1)
    rig.market.destroy(id)
    rig.after(2 * OPERATION_S)

    assert rig.status(id) is None
    assert "start" not in {effect.kind for effect in rig.sim.drain()}


def test_an_id_that_is_none_of_googles_says_so(alone: Rig) -> None:
    for id in ("4711", "", "/", "zone/", "zone/a/b", "zone/Name", "../x"):
        for call in (alone.market.get, alone.market.destroy, alone.market.start, alone.market.operations):
            with pytest.raises(InvalidInput):
                call(id)
    assert alone.sent == []


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


# --- addresses


def test_an_address_is_reserved_once_and_told_when_it_is_there(rig: Rig) -> None:
    first = rig.market.reserve(ADDRESS, REGION)
    assert (first.name, first.region, first.ip) == (ADDRESS, REGION, None)
    assert rig.market.reserve(ADDRESS, REGION).ip is None
    rig.after(OPERATION_S)

    found = rig.market.reserve(ADDRESS, REGION)
    assert found.ip
    assert rig.market.addresses() == [found]
    assert found.used_by is None


def test_a_machine_takes_the_address_and_holds_it_while_it_is_stopped(rig: Rig) -> None:
    ip = rig.reserved()
    id = rig.running(address=ip)

    assert (row := rig.market.get(id)) and row.ssh_host == ip
    assert rig.market.reserve(ADDRESS, REGION).used_by == id
    rig.sim.preempt(LABEL, rig.now)
    rig.after(NOTICE_S)
    assert rig.market.addresses()[0].used_by == id
    with pytest.raises(MarketRefused):
        rig.market.release(ADDRESS, REGION)


def test_an_address_that_another_machine_holds_is_told_by_the_operation(rig: Rig) -> None:
    ip = rig.reserved()
    rig.running(address=ip)
    second = rig.rent("dumont-abc123-i1-8-00000000", address=ip)
    rig.after(OPERATION_S)

    assert isinstance(rig.newest(second).refusal, MarketRefused)
    assert rig.market.get(second) is None


def test_a_new_machine_takes_over_the_address_of_one_that_was_destroyed(rig: Rig) -> None:
    ip = rig.reserved()
    rig.market.destroy(rig.running(address=ip))
    rig.after(OPERATION_S)

    second = rig.running("dumont-abc123-i1-8-00000000", address=ip)

    assert (row := rig.market.get(second)) and row.ssh_host == ip


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_machine_gives_its_address_to_another_before_it_is_destroyed(rig: Rig, is_stopped: bool) -> None:
    ip = rig.reserved()
    id = rig.running(address=ip)
    if is_stopped:
        rig.sim.preempt(LABEL, rig.now)
        rig.after(NOTICE_S)

    name = rig.market.detach(id)
    assert rig.market.reserve(ADDRESS, REGION).used_by == id
    rig.after(OPERATION_S)

    assert (done := rig.market.operation(name)) and done.is_done
    assert rig.market.reserve(ADDRESS, REGION).used_by is None
    second = rig.running("dumont-abc123-i1-8-00000000", address=ip)
    assert rig.market.reserve(ADDRESS, REGION).used_by == second
    assert (old := rig.market.get(id)) and old.ssh_host is None
    with pytest.raises(MarketRefused):
        rig.market.detach(id)


def test_an_address_of_nowhere_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(MarketRefused):
        rig.rent(address="198.51.100.7")
    assert rig.market.list() == []


def test_a_released_address_is_gone_and_releasing_it_again_succeeds(rig: Rig) -> None:
    rig.reserved()

    assert rig.market.release(ADDRESS, REGION)
    rig.after(OPERATION_S)

    assert rig.market.addresses() == []
    assert not rig.market.release(ADDRESS, REGION)
    bill = rig.sim.charges(rig.now)
    rig.after(3600)
    assert rig.sim.charges(rig.now) == bill


def test_an_address_that_was_given_back_can_be_reserved_again(rig: Rig) -> None:
    rig.reserved()
    rig.market.release(ADDRESS, REGION)
    rig.after(OPERATION_S)

    assert rig.reserved()


def test_a_reservation_whose_answer_was_lost_is_found(alone: Rig) -> None:
    def lose_the_answer(request: Request) -> Answer:
        answer = alone.handle(request)
        if request.method == "POST":
            raise requests.ConnectionError("lost")
        return answer

    with pytest.raises(MarketUnknown):
        alone.answering(lose_the_answer).reserve(ADDRESS, REGION)
    alone.after(OPERATION_S)

    assert alone.market.reserve(ADDRESS, REGION).ip
    assert len(alone.market.addresses()) == 1


def test_two_who_reserve_at_once_share_the_address(alone: Rig) -> None:
    def somebody_was_first(request: Request) -> Answer:
        if request.method == "POST":
            alone.market.reserve(ADDRESS, REGION)
        return alone.handle(request)

    assert alone.answering(somebody_was_first).reserve(ADDRESS, REGION).ip is None
    assert len(alone.market.addresses()) == 1


def test_the_quota_of_addresses_is_told_at_once(rig: Rig) -> None:
    rig.sim.quota_addresses = 0

    with pytest.raises(QuotaExceeded):
        rig.market.reserve(ADDRESS, REGION)


@pytest.mark.parametrize("name", ["somebody", "dumont-Upper", ""])
def test_an_address_that_our_listing_would_not_show_is_not_reserved(alone: Rig, name: str) -> None:
    with pytest.raises(InvalidInput):
        alone.market.reserve(name, REGION)
    assert alone.sent == []


# --- money


def _grown(rig: Rig, label: str, seconds: float) -> dict[str, Decimal]:
    before = rig.sim.charges(rig.now).get(label, {})
    rig.after(seconds)
    after = rig.sim.charges(rig.now).get(label, {})
    return {kind: usd - before.get(kind, Decimal(0)) for kind, usd in after.items()}


def test_what_was_shown_is_what_is_billed(alone: Rig) -> None:
    alone.running()
    alone.after(30)

    grown = _grown(alone, LABEL, 3600)

    assert abs(grown["gpu"] + grown["address"] - alone.offer.gpu_usd_per_hour) <= 3 * MICRO
    assert abs(grown["disk"] - alone.offer.disk_usd_per_hour(30)) <= 2 * MICRO
    assert set(grown) == {"gpu", "disk", "address"}


def test_a_stopped_machine_bills_its_disk_and_the_address_it_holds(alone: Rig) -> None:
    alone.running(address=alone.reserved())
    alone.sim.preempt(LABEL, alone.now)
    alone.after(NOTICE_S + 60)

    grown = _grown(alone, LABEL, 3600)

    assert grown["gpu"] == 0
    assert abs(grown["address"] - Decimal("0.01")) <= 2 * MICRO
    assert abs(grown["disk"] - alone.offer.disk_usd_per_hour(30)) <= 2 * MICRO
    assert _grown(alone, ADDRESS, 3600).get("address", Decimal(0)) == 0  # the machine's bill has it


def test_an_address_that_nobody_holds_bills_four_times_as_much_as_in_use_on_spot(alone: Rig) -> None:
    alone.reserved()

    assert abs(_grown(alone, ADDRESS, 3600)["address"] - Decimal("0.01")) <= 2 * MICRO


def test_a_run_bills_a_minute_at_least(alone: Rig) -> None:
    id = alone.running()
    alone.after(1)
    alone.sim.shut_down(id, alone.now)

    minute = (alone.offer.gpu_usd_per_hour - Decimal("0.0025")) / 60
    assert abs(alone.sim.billed(id, alone.now)["gpu"] - minute) <= 2 * MICRO


def test_a_destroyed_machine_stops_billing(alone: Rig) -> None:
    id = alone.running()
    alone.market.destroy(id)
    alone.after(OPERATION_S)
    bill = alone.sim.billed(id, alone.now)

    alone.after(3600)

    assert sum(bill.values()) > 0
    assert alone.sim.billed(id, alone.now) == bill


def test_a_lost_machine_bills_no_more(alone: Rig) -> None:
    id = alone.running()
    alone.sim.lose(id, alone.now)
    bill = alone.sim.billed(id, alone.now)
    alone.after(3600)

    assert alone.sim.billed(id, alone.now) == bill
    assert alone.market.get(id) is None


def test_a_journalled_project_goes_on_as_if_nothing_had_happened(alone: Rig) -> None:
    ip = alone.reserved()
    id = alone.running(address=ip)
    alone.rent("dumont-abc123-i1-8-00000000", address=ip)
    alone.sim.stockout("us-east1-b", alone.now + timedelta(hours=1))
    alone.sim.preempt(LABEL, alone.now)
    plain = json.loads(json.dumps(alone.sim.to_json()))
    again = ComputeSim.from_json(plain, rng=random.Random(1))
    alone.sim.drain()
    alone.after(40)
    again.tick(alone.now)

    assert again.to_json() == alone.sim.to_json()
    assert again.drain() == alone.sim.drain()
    assert again.billed(id, alone.now) == alone.sim.billed(id, alone.now)
