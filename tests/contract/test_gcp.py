"""What a market of standbys must do: the adapter, with Google's own client in it, over the simulator's two faces."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import uuid
from datetime import timedelta
from typing import Any

import pytest

from common.adapters.gcp import answers, compute, keys
from common.domain.offer import Wanted
from common.domain.standby_price import Terms
from common.errors import (
    InvalidInput,
    MarketError,
    MarketRefused,
    OfferGone,
    QuotaExceeded,
)
from common.ports import Market, Standbys
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.wire import Answer, Request, json_answer
from tests.gcp_rig import (
    LABEL,
    MICRO,
    NOTICE_S,
    PROJECT,
    REGION,
    START,
    ZONE,
    Rig,
    alone,
    launch_of,
    offers,
    rig,
)

__all__ = ["alone", "rig"]
pytestmark = pytest.mark.usefixtures("nobody_is_looked_up")


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


def test_a_running_machine_tells_since_when_it_runs_however_late_it_is_listed(rig: Rig) -> None:
    id = rig.rent()
    assert rig.market.list()[0].runs_since is None
    rig.after(60)
    billed_from = rig.sim.vm(id).started_at
    rig.after(1000)

    (row,) = rig.market.list()
    assert row.status == "running"
    assert row.runs_since and billed_from
    assert abs((row.runs_since - billed_from).total_seconds()) < 0.001


@pytest.mark.parametrize("text", ["", "yesterday", "2026-03-01T12:00:00"], ids=["none", "no time", "no zone"])
def test_a_time_that_cannot_be_read_tells_nothing_and_hides_no_machine(alone: Rig, text: str) -> None:
    id = alone.running()

    def without_time(request: Request) -> Answer:
        answer = alone.handle(request)
        row = {**json.loads(answer.body), "lastStartTimestamp": text}
        return json_answer(answer.status, row)

    found = alone.answering(without_time).get(id)
    assert found
    assert (found.status, found.runs_since) == ("running", None)


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
