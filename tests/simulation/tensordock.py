"""The simulated TensorDock of the world: whole machines, deletes that take a while, and no bill to read."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from common.adapters.tensordock import NOBODYS_KEY, V0_NAMES, TensorDock
from infra.demo.tensordock import TensorDockSim
from infra.demo.tensordock_machine import Machine
from infra.demo.tensordock_market import draw_hosts, free_resources
from infra.demo.wire import Answer, Request
from tests.simulation.market import API_KEY, BOOT_S, FUZZ, GPU, Account, LightHttp, json_answer

WRONG_GPU = "geforcertx3090-pcie-24gb"
NEVER_S = 1e9


class TensorDockAccount(Account):
    name = "tensordock"
    publishes_a_bill = False
    offer_gone = json_answer(400, {"status": 400, "error": "not enough capacity on the hostnode"})
    destroy_failed = json_answer(500, {"status": 500, "error": "Internal server error"})
    destroyed = json_answer(200, {"data": {"type": "success", "message": "deleted"}})

    def make_sim(self) -> TensorDockSim:
        self._hidden_until: dict[str, datetime] = {}
        self._ghosts: dict[str, datetime] = {}
        hosts = [{**host, "boot_s": self.rng.uniform(*BOOT_S)} for host in draw_hosts(self.rng)]
        return TensorDockSim(rng=self.rng, api_key=API_KEY, requests_per_minute=None, hosts=hosts)

    # --- requests

    def verb_of(self, request: Request) -> tuple[str, Machine | None]:
        noun, _, id = request.path.removeprefix("/api/v2/").partition("/")
        if noun != "instances":
            return ("look" if id else "search"), None
        if not id:
            return {"GET": "list", "POST": "create"}[request.method], None
        found = next((m for m in self.sim.all_contracts() if m.id == id), None)
        return {"GET": "show", "DELETE": "destroy"}[request.method], found

    def label_in(self, request: Request) -> str:
        return str(json.loads(request.body)["data"]["attributes"]["name"])

    def strangers_create(self, label: str) -> Request | None:
        (v0_name,) = V0_NAMES[GPU]
        host = next((h for h in self.sim._hosts if h["v0_name"] == v0_name and len(self.sim._on(h)) < h["gpus"]), None)
        if host is None:
            return None
        (port, *_) = free_resources(host, self.sim._on(host))["ports"]
        attributes = {
            "name": label,
            "image": "ubuntu2404",
            "hostnode_id": host["id"],
            "resources": {"vcpu_count": 4, "ram_gb": 16, "storage_gb": 100, "gpus": {v0_name: {"count": 1}}},
            "port_forwards": [{"internal_port": 22, "external_port": port}],
            "ssh_key": NOBODYS_KEY,
        }
        body = json.dumps({"data": {"type": "virtualmachine", "attributes": attributes}}).encode()
        return Request("POST", "/api/v2/instances", {}, {"Authorization": f"Bearer {API_KEY}"}, body)

    # --- one machine

    def is_over(self, contract: Machine) -> bool:
        return contract.status in ("deleting", "deleted")

    def haunt(self, contract: Machine, for_s: float) -> None:
        self._ghosts[contract.id] = self.loop.clock() + timedelta(seconds=for_s)

    def hide(self, contract: Machine, for_s: float) -> None:
        self._hidden_until[contract.id] = self.loop.clock() + timedelta(seconds=for_s)

    def refused_but_rented(self, contract: Machine, now: datetime) -> Answer:
        """Known of this vendor: a plain refusal, and a machine that boots, and bills."""
        return json_answer(400, {"status": 400, "error": "You need at least $1 in your balance to deploy"})

    def boots_at(self, contract: Machine, after_s: float | None) -> None:
        contract.stuck = after_s is None
        contract.host = {**contract.host, "boot_s": NEVER_S if after_s is None else after_s}

    def boot_times(self, contract: Machine) -> Collection[float]:
        return [] if contract.stuck else [contract.host["boot_s"]]

    def die_at_boot(self, contract: Machine) -> None:
        if contract.status in ("queued", "starting"):
            self.sim.fail(contract.id, self.loop.clock())

    def reprice(self, contract: Machine, factor: float) -> None:
        contract.compute_usd_per_hour *= Decimal(str(factor))

    def give_wrong_gpu(self, contract: Machine, rng: random.Random) -> None:
        contract.gpu_given = WRONG_GPU

    def give_small_disk(self, contract: Machine) -> None:
        contract.disk_given_gb = contract.disk_gb // 4

    def offline(self, contract: Machine) -> bool:
        """The vendor does not look: listed, and billed, as before, while nothing of it runs any more."""
        self.sim.offline(contract.id, self.loop.clock())
        self.after()
        return True

    def back_online(self, contract: Machine) -> None:
        """What ran there is gone; nobody starts it again."""

    def place(self, contract: Machine) -> str:
        return str(contract.host["country"])

    def billed(self, contract: Machine, now: datetime) -> dict[tuple[str, datetime], Decimal]:
        contract.accrue(now)
        return contract.bill.rounded()

    def ran_s(self, contract: Machine) -> dict[str, float]:
        contract.accrue(self.loop.clock())
        rates = {"gpu": contract.compute_usd_per_hour, "disk": contract.disk_usd_per_hour}
        return {kind: float(usd / rates[kind] * 3600) for kind, usd in contract.bill.totals().items()}

    # --- answers

    def rows_of(self, listing: Answer) -> list[Any]:
        return list(json.loads(listing.body)["data"]["instances"])

    def _listed(self, answer: Answer, strike: Any) -> Answer:
        now, machines = self.loop.clock(), self.sim.all_contracts()
        shown = [row for row in self.rows_of(answer) if self._hidden_until.get(row["id"], now) <= now]
        ghosts = [m.row() for m in machines if not m.listed and self._ghosts.get(m.id, now) > now]
        return super()._listed(self.listing_answer(answer, [*shown, *ghosts], 0), strike)

    def listing_answer(self, listing: Answer, rows: list[Any] | None, off_by: int) -> Answer:
        more = {"meta": {"total": len(rows) + off_by}} if rows is not None and off_by > 0 else {}
        return json_answer(200, {"data": {"instances": rows}, **more})

    def offers_answer(self, found: Answer, offers: list[Any] | None) -> Answer:
        return json_answer(200, {"data": {"hostnodes": offers}})

    def fuzzed(self, found: Answer) -> Answer:
        body = json.loads(found.body)
        for number, node in enumerate(body["data"]["hostnodes"]):
            for gpu in node["available_resources"]["gpus"] if number % 2 == 0 else ():
                gpu["price_per_hr"] = FUZZ[number // 2 % len(FUZZ)]
        return json_answer(200, body)


def adapter(account: Account) -> TensorDock:
    """The real adapter, with a lighter client than httpx's."""
    market = TensorDock(API_KEY, transport=httpx.MockTransport(lambda _request: httpx.Response(503)))
    market._http = LightHttp(account)  # type: ignore[assignment]
    return market
