"""The simulated Vast.ai of the world."""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from common.adapters.vast import Vast
from infra.demo.vast import VastSim
from infra.demo.vast_contract import Contract
from infra.demo.wire import Answer, Request
from tests.simulation.market import API_KEY, BOOT_S, FUZZ, GPU, Account, LightHttp, json_answer

MACHINES = 14
CHARGES_LAG_S = 90.0
WRONG_GPUS = ("RTX 3090", "RTX 4090 Laptop GPU")


class VastAccount(Account):
    name = "vast"
    offer_gone = json_answer(410, {"success": False, "error": "no_such_ask", "msg": "error 410/3907: no_such_ask"})
    destroy_failed = json_answer(500, {"success": False, "error": "internal", "msg": "could not reach the host"})
    destroyed = json_answer(200, {"success": True})

    def make_sim(self) -> VastSim:
        return VastSim(rng=self.rng, api_key=API_KEY, machines=_machines(self.rng))

    # --- requests

    def verb_of(self, request: Request) -> tuple[str, Contract | None]:
        parts = request.path.strip("/").split("/")
        number = int(parts[-1]) if parts[-1].isdigit() else None
        if parts[2] == "asks":
            return "create", None
        if number is None:
            return {"bundles": "search", "instances": "list"}.get(parts[2], parts[2]), None
        found = next((c for c in self.sim.all_contracts() if c.id == number), None)
        return {"GET": "show", "DELETE": "destroy"}.get(request.method, "change"), found

    def label_in(self, request: Request) -> str:
        return str(json.loads(request.body).get("label") or "")

    def strangers_create(self, label: str) -> Request | None:
        taken = {contract.machine["machine_id"] for contract in self.sim.contracts()}
        free = [ask for ask, machine in self.sim._asks.items() if machine not in taken]
        if not free:
            return None
        self.sim._calls.pop("create", None)
        body = json.dumps({"label": label, "image": "other", "disk": 20}).encode()
        return Request("PUT", f"/api/v0/asks/{free[-1]}/", {}, {"Authorization": f"Bearer {API_KEY}"}, body)

    # --- one machine

    def is_over(self, contract: Contract) -> bool:
        return not contract.listed

    def haunt(self, contract: Contract, for_s: float) -> None:
        contract.ghost_until = self.loop.clock() + timedelta(seconds=for_s)

    def hide(self, contract: Contract, for_s: float) -> None:
        contract.listed_from = self.loop.clock() + timedelta(seconds=for_s)

    def refused_but_rented(self, contract: Contract, now: datetime) -> Answer:
        """An error that names a contract, which is stopped, and bills."""
        contract.stop(now, "bid too low")
        body = {"success": False, "error": "bid_too_low", "msg": "too low", "new_contract": contract.id}
        return json_answer(400, body)

    def boots_at(self, contract: Contract, after_s: float | None) -> None:
        contract.boots = [("loading", 0.0)] if after_s is None else [("loading", 1.0), ("running", after_s)]

    def boot_times(self, contract: Contract) -> Collection[float]:
        return [after_s for _, after_s in contract.boots]

    def die_at_boot(self, contract: Contract) -> None:
        """As the vendor shows it: the contract runs on, the container has exited with an OCI error."""
        if contract.listed and contract.cur == "running" and contract.actual != "running":
            contract.boots = []
            contract.actual, contract.message = "exited", "OCI runtime create failed"

    def reprice(self, contract: Contract, factor: float) -> None:
        dearer = Decimal(contract.machine["dph_base"]) * Decimal(str(factor))
        contract.machine = {**contract.machine, "dph_base": f"{dearer:.4f}"}

    def give_wrong_gpu(self, contract: Contract, rng: random.Random) -> None:
        contract.machine = {**contract.machine, "wrong_gpu": rng.choice(WRONG_GPUS)}

    def give_small_disk(self, contract: Contract) -> None:
        contract.machine = {**contract.machine, "small_disk": contract.disk_gb // 4}

    def offline(self, contract: Contract) -> bool:
        if contract.offline:
            return False
        self.sim.offline(contract.id, self.loop.clock())
        return True

    def back_online(self, contract: Contract) -> None:
        if contract.listed and contract.offline:
            self.sim.offline(contract.id, self.loop.clock(), back=True)

    def place(self, contract: Contract) -> str:
        return str(contract.machine["geolocation"])

    def billed(self, contract: Contract, now: datetime) -> dict[tuple[str, datetime], Decimal]:
        return contract.billed(now)

    def ran_s(self, contract: Contract) -> dict[str, float]:
        totals = contract.totals(self.loop.clock())
        rates = {"gpu": Decimal(contract.machine["dph_base"]), "disk": contract.disk_usd_per_hour()}
        return {kind: float(totals[kind] / rate * 3600) for kind, rate in rates.items() if kind in totals}

    # --- answers

    def rows_of(self, listing: Answer) -> list[Any]:
        return list(json.loads(listing.body)["instances"])

    def listing_answer(self, listing: Answer, rows: list[Any] | None, off_by: int) -> Answer:
        if rows is None:
            return json_answer(200, {"success": True, "instances": None})
        body = json.loads(listing.body)
        total = body["total_instances"] + off_by
        found = {"instances_found": total} if len(rows) < len(body["instances"]) else {}
        return json_answer(200, {**body, "instances": rows, "total_instances": total, **found})

    def offers_answer(self, found: Answer, offers: list[Any] | None) -> Answer:
        return json_answer(200, {"offers": offers})

    def fuzzed(self, found: Answer) -> Answer:
        body = json.loads(found.body)
        for number, row in enumerate(body["offers"]):
            if number % 2 == 0:
                row["dph_base"] = row["dph_total"] = FUZZ[number // 2 % len(FUZZ)]
        return json_answer(200, body)

    def charged_late(self, charges: Answer) -> Answer:
        since = self.loop.clock() - timedelta(seconds=CHARGES_LAG_S)
        late = {f"instance-{c.id}" for c in self.sim.all_contracts() if c.ended_at and c.ended_at > since}
        body = json.loads(charges.body)
        rows = [row for row in body["results"] if row["source"] not in late]
        return json_answer(200, {**body, "results": rows, "count": len(rows)})


def adapter(account: Account) -> Vast:
    """The real adapter, with a lighter client than httpx's: 200 seeds a run go over real HTTP (module `over_http`)."""
    market = Vast(API_KEY, transport=httpx.MockTransport(lambda _request: httpx.Response(503)))
    market._http = LightHttp(account)  # type: ignore[assignment]
    return market


def _machines(rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "machine_id": 20001 + number,
            "host_id": 500 + number,
            "gpu_name": GPU,
            "num_gpus": 1,
            "gpu_ram": 24564,
            "gpu_total_ram": 24564,
            "total_flops": 80.0,
            "dlperf": 90.0,
            "cpu_cores": 64,
            "cpu_cores_effective": 16.0,
            "disk_space": 1000.0,
            "inet_up": 800.0,
            "inet_down": 1000.0,
            "inet_up_cost": "0.002",
            "inet_down_cost": "0.002",
            "cuda_max_good": 12.8,
            "reliability": 0.99,
            "verification": "verified",
            "hosting_type": 1,
            "driver_version": "560.35.03",
            "geolocation": ("California, US", "Norway, NO")[number % 2],
            "dph_base": f"{rng.uniform(0.24, 0.62):.4f}",
            "storage_cost": "0.15",
            "min_bid": "0.1500",
            "boot_s": round(rng.uniform(*BOOT_S), 1),
        }
        for number in range(MACHINES)
    ]
