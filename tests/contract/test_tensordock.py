"""What only TensorDock has: virtual machines, disks in steps, one word for a machine's state, refusals in the body."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.adapters.tensordock import NOBODYS_KEY, STATUSES, TensorDock, cloud_init
from common.domain import startup
from common.domain.offer import Offer, Wanted
from common.errors import MarketKeyRefused, MarketRefused, MarketUnknown, NoCredit, OfferGone
from common.ports import Launch
from infra.demo.tensordock import TensorDockSim, run_cloud_init
from tests.hand_cranked import SimTransport

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
H100 = Wanted(gpu="H100 SXM", disk_gb=64)


class Market:
    def __init__(self) -> None:
        self.now = START
        self.sim = TensorDockSim(rng=random.Random(1), api_key="sim-key", requests_per_minute=None)
        self.real = SimTransport(self)
        self.sent: list[httpx.Request] = []
        self.dock = TensorDock("sim-key", base_url="http://dock.sim", transport=httpx.MockTransport(self._record))

    def _record(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        return self.real.handle_request(request)

    def rent(self, offer: Offer | None = None, **more: Any) -> str:
        launch = Launch(label="one", image="i", disk_gb=64, env={}, start_script="true", **more)
        return self.dock.create(offer or self.dock.search(H100)[0], launch)

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)


@pytest.fixture
def market() -> Iterator[Market]:
    made = Market()
    yield made
    made.dock.close()


def _answering(body: Any, status: int = 200) -> TensorDock:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    return TensorDock("k", base_url="http://dock.sim", transport=transport)


@pytest.mark.parametrize(("wished", "created"), [(8, 100), (100, 100), (101, 150), (150, 150), (199, 200)])
def test_a_disk_is_priced_as_it_is_created(market: Market, wished: int, created: int) -> None:
    offer = market.dock.search(H100.model_copy(update={"disk_gb": wished}))[0]
    launch = Launch(label="one", image="i", disk_gb=wished, env={}, start_script="true")
    market.dock.create(offer, launch)

    (machine,) = market.sim.contracts()
    assert machine.disk_gb == created
    assert offer.disk_usd_per_hour(wished) == machine.disk_usd_per_hour
    assert offer.gpu_usd_per_hour == machine.compute_usd_per_hour


def test_several_gpus_get_their_share_of_cpus_and_memory(market: Market) -> None:
    found = market.dock.search(H100.model_copy(update={"num_gpus": 2}))

    assert found
    assert {(offer.num_gpus, offer.vcpus, offer.ram_gb) for offer in found} == {(2, 16, 64)}


def test_who_chose_a_container_image_is_not_offered_a_virtual_machine(market: Market) -> None:
    assert market.dock.search(H100.model_copy(update={"image_matters": True})) == []


def test_a_machine_on_a_shared_host_gets_a_port_that_is_free(market: Market) -> None:
    offer = market.dock.search(H100)[0]
    market.rent(offer)
    market.rent(offer)

    ports = [machine.ports[0]["external_port"] for machine in market.sim.contracts()]
    assert len(set(ports)) == 2


def test_a_host_whose_price_rose_above_the_cap_is_not_rented(market: Market) -> None:
    offer = market.dock.search(H100)[0]
    market.sim.price_factor = Decimal("1.01")

    with pytest.raises(OfferGone, match="rose"):
        market.rent(offer, max_usd_per_hour=str(offer.usd_per_hour(64)))

    assert [request.method for request in market.sent] == ["GET", "GET"]


def test_a_delete_that_is_answered_500_leaves_a_machine_that_is_still_told(market: Market) -> None:
    id = market.rent()
    market.sim.deletes_fail = 1

    with pytest.raises(MarketUnknown):
        market.dock.destroy(id)

    assert [row.provider_id for row in market.dock.list()] == [id]
    market.dock.destroy(id)
    market.after(20)
    assert market.dock.get(id) is None


def test_a_gateways_404_says_nothing_about_a_machine() -> None:
    dock = _answering({"success": False, "error": "not_found", "msg": "no such endpoint"}, status=404)

    with pytest.raises(MarketUnknown):
        dock.get("a")
    with pytest.raises(MarketUnknown):
        dock.destroy("a")


@pytest.mark.parametrize("status", ["Running", "STOPPED", "stopped_disassociated", "Stopped_Disassociated", "queued"])
def test_a_state_is_understood_however_it_is_written(status: str) -> None:
    row = {"type": "virtualmachine", "id": "a", "attributes": {"name": "one", "status": status}}

    (listed,) = _answering({"data": {"instances": [row]}}).list()

    assert listed.status == STATUSES[status.lower().replace("_", "")]
    assert listed.in_full is False


def test_a_new_word_for_a_state_is_unknown_and_a_deleted_machine_is_gone() -> None:
    rows = [{"id": n, "name": "one", "status": status} for n, status in enumerate(["migrating", "deleted"])]
    market = _answering({"data": {"instances": rows}})

    assert [(row.provider_id, row.status) for row in market.list()] == [("0", "unknown")]
    assert _answering({"id": "a", "name": "one", "status": "deleted"}).get("a") is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_machine_is_understood_flat_and_wrapped(wrapped: bool) -> None:
    attributes = {"name": "one", "status": "running", "ip_address": " 192.0.2.1 ", "rateHourly": 1.25}
    ports = {"port_forwards": [{"internal_port": 22, "external_port": 22022}]}
    flat = {"id": "a", **attributes, **ports}
    body = {"data": {"id": "a", "attributes": {**attributes, **ports}}} if wrapped else flat

    found = _answering(body).get("a")

    assert found
    assert (found.ssh_host, found.ssh_port, found.usd_per_hour, found.status) == ("192.0.2.1", 22022, "1.25", "running")


@pytest.mark.parametrize("mark", [{"meta": {"total": 2}}, {"links": {"next": "/instances?page=2"}}, {"next": "abc"}])
def test_a_listing_that_says_there_is_more_is_no_listing(mark: dict[str, Any]) -> None:
    rows = [{"id": "a", "attributes": {"name": "one", "status": "running"}}]

    with pytest.raises(MarketUnknown, match="more"):
        _answering({"data": {"instances": rows}, **mark}).list()


REFUSALS = {
    "You need at least $1 in your balance": NoCredit,
    "hostnode does not have 1 x h100 available": OfferGone,
    "out of stock": OfferGone,
    "image is not supported": MarketRefused,
}


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("text", REFUSALS)
def test_a_refused_create_is_told_by_its_words(market: Market, text: str, in_body: bool) -> None:
    offer = market.dock.search(H100)[0]

    def refuse(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return market.real.handle_request(request)
        return httpx.Response(200 if in_body else 400, json={"status": 400, "error": text})

    dock = TensorDock("sim-key", base_url="http://dock.sim", transport=httpx.MockTransport(refuse))
    with pytest.raises(REFUSALS[text]) as refused:
        dock.create(offer, Launch(label="one", image="i", disk_gb=64, env={}, start_script="true"))

    assert type(refused.value) is REFUSALS[text]
    dock.close()


@pytest.mark.parametrize(("status", "kind"), [(401, MarketKeyRefused), (403, MarketKeyRefused), (500, MarketUnknown)])
def test_a_status_in_the_body_counts_like_one_of_http(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        _answering({"status": status, "error": "oops"}).list()


POISON: list[Any] = [0, -1, "0.5", None, 1e9, True]


@pytest.mark.parametrize("price", POISON)
@pytest.mark.parametrize("field", ["price_per_hr", "per_vcpu_hr", "per_gb_ram_hr", "per_gb_storage_hr"])
def test_a_host_with_a_rate_that_cannot_be_believed_offers_nothing(market: Market, field: str, price: Any) -> None:
    def poison(request: httpx.Request) -> httpx.Response:
        body = json.loads(market.real.handle_request(request).content)
        node = next(n for n in body["data"]["hostnodes"] if "h100" in n["available_resources"]["gpus"][0]["v0Name"])
        (node["available_resources"]["gpus"][0] if field == "price_per_hr" else node["pricing"])[field] = price
        return httpx.Response(200, json=body)

    dock = TensorDock("sim-key", base_url="http://dock.sim", transport=httpx.MockTransport(poison))
    expected = len(market.dock.search(H100)) - (0 if field != "price_per_hr" and price == 0 else 1)

    assert len(dock.search(H100)) == expected
    dock.close()


def test_cloud_init_runs_the_whole_script_with_exactly_its_environment() -> None:
    env = {"QUOTES": 'it\'s "so" $HOME `id`\nsecond line', "URL": "https://x/?a=b&c=d", "EMPTY": ""}
    launch = Launch(label="one", image="i", disk_gb=64, env=env, start_script=startup.script())

    assert run_cloud_init(cloud_init(launch)) == (env, startup.script())


def test_what_cloud_init_writes_is_started_by_a_real_shell(tmp_path: Path) -> None:
    launch = Launch(label="l", image="i", disk_gb=8, env={"A": "it's"}, start_script='echo "$A" "$HOME" >"$1/done"\n')
    config = cloud_init(launch)
    folder = tmp_path / "opt"
    folder.mkdir()
    for file in config["write_files"]:
        (folder / Path(file["path"]).name).write_text(file["content"])
    (command,) = config["runcmd"]
    here = command.replace("/opt/dumont", str(folder)).replace("onstart.sh ", f"onstart.sh {tmp_path} ")

    subprocess.run(["sh", "-c", here + " wait"], check=True, timeout=10)

    assert (tmp_path / "done").read_text() == "it's /root\n"


def test_a_machine_that_is_rebooted_starts_its_agent_again_and_one_that_boots_first_only_once(tmp_path: Path) -> None:
    launch = Launch(label="l", image="i", disk_gb=8, env={"A": "1"}, start_script='echo "$A" "$HOME" >>"$1/done"\n')
    for file in cloud_init(launch)["write_files"]:
        content = file["content"].replace("/opt/dumont", f"{tmp_path}/opt/dumont")
        place = tmp_path / Path(file["path"]).relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content.replace("onstart.sh ", f"onstart.sh {tmp_path} "))
    scripts = list((tmp_path / "var/lib/cloud/scripts/per-boot").iterdir())  # as cloud-init has it

    def boots() -> str:
        for script in scripts:
            subprocess.run(["sh", "-c", f". {script}; wait"], check=True, timeout=10)
        return (tmp_path / "done").read_text() if (tmp_path / "done").exists() else ""

    assert boots() == ""
    (tmp_path / "opt/dumont/token").write_text("{}")
    assert boots() == "1 /root\n"


def test_the_key_that_the_vendor_demands_is_a_key_that_nobody_holds(market: Market) -> None:
    market.rent()

    body = json.loads(market.sent[-1].content)["data"]["attributes"]
    hashed = hashlib.sha256(b"dumont: nobody holds this key 4").digest()
    blob = struct.pack(">I", 11) + b"ssh-ed25519" + struct.pack(">I", 32) + hashed
    assert body["ssh_key"] == NOBODYS_KEY == f"ssh-ed25519 {base64.b64encode(blob).decode()} nobody"


# --- the simulator's faults, as the adapter sees them


def test_a_machine_that_never_boots_bills_from_its_create(market: Market) -> None:
    id = market.rent()
    market.sim.stuck(id)
    market.after(3600)

    found = market.dock.get(id)
    assert found
    assert found.status == "starting"
    assert sum(market.sim.billed(id, market.now).values()) > 2


def test_a_machine_that_failed_is_told_from_one_that_still_boots(market: Market) -> None:
    id = market.rent()
    market.sim.fail(id, market.now)

    assert [row.status for row in market.dock.list()] == ["offline"]


def test_a_lost_host_is_still_listed_as_running(market: Market) -> None:
    id = market.rent()
    market.after(20)
    market.sim.offline(id, market.now)

    assert [row.status for row in market.dock.list()] == ["running"]


def test_a_machine_that_the_listing_omits_is_found_by_its_id(market: Market) -> None:
    id = market.rent()
    market.sim.list_omits.add(id)

    assert market.dock.list() == []
    assert market.dock.get(id)


def test_a_host_that_gives_another_model_names_it_in_the_machines_resources(market: Market) -> None:
    market.sim.gpu_given = "geforcertx3090-pcie-24gb"
    id = market.rent()

    answer = market.real.handle_request(
        httpx.Request("GET", f"http://dock.sim/api/v2/instances/{id}", headers={"Authorization": "Bearer sim-key"})
    )
    assert list(answer.json()["resources"]["gpus"]) == ["geforcertx3090-pcie-24gb"]


def test_when_every_host_is_taken_between_search_and_create_nothing_is_rented(market: Market) -> None:
    offer = market.dock.search(H100)[0]
    market.sim.take_hosts()

    with pytest.raises(OfferGone):
        market.rent(offer)

    assert market.sim.all_contracts() == []


def test_a_stopped_machine_keeps_its_disk_and_may_not_get_its_gpu_back(market: Market) -> None:
    id = market.rent()
    market.after(20)
    market.sim.outbid(id, market.now)
    market.sim.take_hosts()

    headers = {"Authorization": "Bearer sim-key"}
    start = httpx.Request("POST", f"http://dock.sim/api/v2/instances/{id}/start", headers=headers)
    assert market.real.handle_request(start).status_code == 400
    (machine,) = market.sim.contracts()
    assert machine.usd_per_hour() == machine.disk_usd_per_hour
