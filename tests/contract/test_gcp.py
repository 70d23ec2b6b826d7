"""What a market of standbys must do: the adapter, with Google's own client in it, over the simulator's two faces."""

from __future__ import annotations

import inspect
import json
import random
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
import requests
from werkzeug.serving import WSGIRequestHandler, make_server

from common.adapters.gcp import ANONYMOUS, GcpCompute, answers, compute, keys
from common.domain.offer import Offer, Wanted
from common.domain.region import place_of
from common.domain.standby_price import Terms, standby_offer, standby_offers
from common.errors import (
    InvalidInput,
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketUnknown,
    NoCredit,
    NotFound,
    OfferGone,
    QuotaExceeded,
    SettingError,
    Throttled,
)
from common.ports import Launch, Market, Operation, Standbys
from infra.demo.gcp.compute import PREEMPTION_NOTICE, ComputeSim
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.http_face import HttpFace
from infra.demo.wire import Answer, Request, json_answer
from tests.gcp_carrier import Carrier, service_account_key

START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
KEY_ID = "sim-key"
PROJECT = "demo-project"
LABEL = "dumont-abc123-i1-7-0a1b2c3d"
ADDRESS = "dumont-abc123-i1"
ZONE = "us-central1-a"
REGION = "us-central1"
MICRO = Decimal("0.000001")
NOTICE_S = PREEMPTION_NOTICE.total_seconds()
Answers = Callable[[Request], Answer]


@cache
def _key(key_id: str) -> str:
    return service_account_key(key_id)


@pytest.fixture(autouse=True)
def nobody_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Google's client has calls of its own that know no endpoint, one of them on a thread where its failure is lost."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def noted(host: Any, *args: Any, **more: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", "::1"):
            asked.append(host)
        return look_up(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    yield
    assert asked == []


class Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Silence."""


class Rig:
    """One project: the adapter over its simulator, on a clock of its own."""

    def __init__(self, *, over_http: bool = False) -> None:
        self.now = START
        self.sim = ComputeSim(rng=random.Random(1), key_id=KEY_ID, requests_per_minute=None)
        self._stack = ExitStack()
        self.url = self._serve() if over_http else "http://google.sim"
        self.carrier = None if over_http else Carrier(self.handle)
        self.market = self._made(_key(KEY_ID), self.carrier)
        self.offer = _offers()[0]

    def handle(self, request: Request) -> Answer:
        return self.sim.handle(request, self.now)

    def _serve(self) -> str:
        face = HttpFace(self.sim, clock=lambda: self.now, lock=threading.Lock())
        server = make_server("127.0.0.1", 0, face, threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return f"http://127.0.0.1:{server.port}"

    def with_key(self, key_id: str) -> GcpCompute:
        return self._made(_key(key_id), self.carrier)

    def answering(self, say: Answers) -> GcpCompute:
        """The adapter of a project where Google answers so."""
        return self._made(_key(KEY_ID), Carrier(say))

    def _made(self, key: str, carrier: Carrier | None) -> GcpCompute:
        made = GcpCompute(key, base_url=self.url, carrier=carrier)
        self._stack.callback(made.close)
        return made

    @property
    def sent(self) -> list[Request]:
        assert self.carrier
        return self.carrier.sent

    def rent(self, label: str = LABEL, offer: Offer | None = None, **more: Any) -> str:
        return self.market.create(offer or self.offer, _launch(label, **more))

    def running(self, label: str = LABEL, **more: Any) -> str:
        id = self.rent(label, **more)
        self.after(OPERATION_S)
        assert self.status(id) == "running"
        return id

    def reserved(self) -> str:
        """The IP of our one address."""
        self.market.reserve(ADDRESS, REGION)
        self.after(OPERATION_S)
        ip = self.market.reserve(ADDRESS, REGION).ip
        assert ip
        return ip

    def status(self, id: str) -> str | None:
        one = self.market.get(id)
        rows = {row.provider_id: row for row in self.market.list()}
        assert rows.get(id) == one
        return one.status if one else None

    def newest(self, id: str) -> Operation:
        return self.market.operations(id)[0]

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)

    def close(self) -> None:
        self._stack.close()


def _offers() -> tuple[Offer, ...]:
    place = place_of("Iowa, US")
    assert place
    return standby_offers(place, 30)


def _launch(label: str = LABEL, **more: Any) -> Launch:
    wanted: dict[str, Any] = {"image": "", "disk_gb": 30, "env": {"A": "it's b"}, "start_script": "echo up\n", **more}
    return Launch(label=label, **wanted)


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
    launch = _launch(env={"A": "it's\n'b'"}, start_script='printf "%s|%s" "$A" "$HOME"')
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
    dear = next(offer for offer in _offers() if "/standard/" in offer.offer_id)
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
    elsewhere = next(offer for offer in _offers() if offer.machine_id != ZONE)

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
        alone.answering(lose_the_answer).create(alone.offer, _launch())

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
    offers = _offers()
    labels = [f"dumont-abc123-i{n}-1-00000000" for n in range(30)]
    for n, label in enumerate(labels):
        rig.rent(label, offers[n % len(offers)])

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
    def for_ever(_: Request) -> Answer:
        return json_answer(200, {"kind": "compute#instanceAggregatedList", "items": {}, "nextPageToken": "more"})

    with pytest.raises(MarketUnknown):
        alone.answering(for_ever).list()


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
            alone.sim.book.request_ids.clear()
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


# --- refusals and answers that say nothing


CALLS: dict[str, Callable[[Standbys], Any]] = {
    "list": lambda market: market.list(),
    "get": lambda market: market.get(f"{ZONE}/{LABEL}"),
    "destroy": lambda market: market.destroy(f"{ZONE}/{LABEL}"),
    "create": lambda market: market.create(_offers()[0], _launch()),
    "start": lambda market: market.start(f"{ZONE}/{LABEL}"),
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

    assert alone.carrier.timeouts_s == [compute.CALL_TIMEOUT_S]  # and each is one request


def _say(status: int, body: bytes, kind: str = "application/json", **headers: str) -> Answers:
    return lambda _: Answer(status, body, kind, headers)


def _raise(error: Exception) -> Answers:
    def say(_: Request) -> Answer:
        raise error

    return say


def _refusal(status: int, reason: str, message: str = "no") -> Answers:
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message, "domain": "global"}]}
    return lambda _: json_answer(status, {"error": error})


NOTHING: dict[str, Answers] = {
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


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", NOTHING)
def test_an_answer_without_information_is_never_absence_or_success(alone: Rig, answer: str, call: str) -> None:
    definite = answer == "404 of another thing" and call in ("list", "create", "operations", "addresses")

    with pytest.raises(MarketRefused if definite else MarketUnknown):
        CALLS[call](alone.answering(NOTHING[answer]))


REFUSALS: dict[str, tuple[Answers, type[MarketError]]] = {
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


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_definite_refusal_has_its_own_error(alone: Rig, refusal: str, call: str) -> None:
    say, kind = REFUSALS[refusal]

    with pytest.raises(kind) as raised:
        CALLS[call](alone.answering(say))

    assert type(raised.value) is kind


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
    (tmp_path / "key.json").write_text(_key(KEY_ID))
    market = GcpCompute(str(tmp_path / "key.json"), base_url=alone.url, carrier=alone.carrier)

    assert market.list() == []
    market.close()


def test_a_project_that_nobody_names_stops_the_start() -> None:
    with pytest.raises(SettingError, match="GCP_PROJECT"):
        GcpCompute(ANONYMOUS, base_url="http://127.0.0.1:1")


def test_a_broken_private_key_is_a_setting(alone: Rig) -> None:
    broken = json.dumps(json.loads(_key(KEY_ID)) | {"private_key": "x"})

    with pytest.raises(SettingError):
        GcpCompute(broken, base_url=alone.url, carrier=alone.carrier).list()


def test_a_standard_offer_is_priced_with_its_own_address() -> None:
    spot, standard = (standby_offer(Terms(zone=ZONE, model=model)) for model in ("spot", "standard"))  # type: ignore[arg-type]

    assert standard.gpu_usd_per_hour > spot.gpu_usd_per_hour
