"""Vast.ai's API as a state machine: request in, answer out, `now` passed in. No clock, no thread, no socket.

What the real world must do (start a machine, stop it, wipe it) waits in `drain()` for whoever owns the machines.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from infra.demo.vast_contract import Contract
from infra.demo.vast_market import BadFilter, draw_machines, matching, offer
from infra.demo.vast_webhooks import WebhookRefused, Webhooks
from infra.demo.wire import Answer, Effect, Request, json_answer, json_body

PAGE_MAX = 25
CREDIT_USD = "250"
API = "/api/v0/"
INTERVALS: Mapping[str, float] = {
    "create": 4.5,
    "list": 1.0,
    "show": 2.0,
    "change": 1.0,
    "destroy": 3.0,
    "bid": 5.5,
    "charges": 1.0,
}
"""Least seconds between two calls of one endpoint and key (the vendor's documentation of its rate limits)."""
CREATE_PENALTY_S = 12.0
SEARCHES_PER_MINUTE = 10


class Refused(Exception):
    """An answer that is not 2xx, or a refusal with 200."""

    def __init__(self, status: int, error: str, msg: str, **more: Any) -> None:
        super().__init__(msg)
        self.status = status
        self.body = {"success": False, "error": error, "msg": msg, **more}


class VastSim:
    """One account of the marketplace: `wire.Marketplace`."""

    name = "vast"

    def __init__(
        self,
        *,
        rng: random.Random,
        api_key: str,
        intervals: Mapping[str, float] = INTERVALS,
        machines: list[dict[str, Any]] | None = None,
    ) -> None:
        self._api_key, self._intervals = api_key, intervals
        self._machines = machines if machines is not None else draw_machines(rng)
        self._asks = {7000 + n: machine["machine_id"] for n, machine in enumerate(self._machines)}
        self._away: set[int] = set()
        self._contracts: dict[int, Contract] = {}
        self._unsettled: dict[int, Contract] = {}
        self._settled = Decimal(0)
        self._next_id = 9000
        self._credit = Decimal(CREDIT_USD)
        self._calls: dict[str, datetime] = {}
        self._searches: list[datetime] = []
        self._effects: list[Effect] = []
        self.webhooks = Webhooks(random.Random(rng.randrange(2**32)))
        self.start_refused = False
        """Every start is answered with 200 and resources_unavailable."""
        self.search_quota_used = False
        self.creates_answer_500 = False
        """The contract is made, and the answer is a 500."""
        self.price_factor = Decimal(1)
        """Between the search and the create the host's price is multiplied."""

    # --- the wire

    def handle(self, request: Request, now: datetime) -> Answer:
        self.tick(now)
        try:
            self._authenticate(request)
            return json_answer(200, self._route(request)(request, now))
        except Refused as refused:
            if refused.status == 429 and refused.body["error"] == "too_frequent":
                return Answer(429, str(refused).encode(), "text/plain")
            return json_answer(refused.status, refused.body)

    def _authenticate(self, request: Request) -> None:
        if request.authorization is None:
            raise Refused(403, "auth_error", "This action requires login.")
        key = request.authorization.removeprefix("Bearer ")
        if key != self._api_key and not self._is_of_the_container(key, request):
            status = 401 if "/instances" in request.path else 404
            raise Refused(status, "auth_error", "Invalid user key")

    def container_key(self, id: int) -> str:
        """CONTAINER_API_KEY: it may start, stop and destroy its own contract and nothing else."""
        return hashlib.sha256(f"{self._api_key}:{id}".encode()).hexdigest()

    def _is_of_the_container(self, key: str, request: Request) -> bool:
        id = request.path.strip("/").rpartition("/")[2]
        may = request.method in ("PUT", "DELETE") and request.path.strip("/") == f"api/v0/instances/{id}"
        return may and id.isdigit() and key == self.container_key(int(id))

    def _route(self, request: Request) -> Callable[[Request, datetime], Any]:
        path = request.path if request.path.endswith("/") else request.path + "/"
        parts = tuple(path.removeprefix("/api/").strip("/").split("/"))
        table: dict[tuple[str, str], Callable[[Request, datetime], Any]] = {
            ("POST", "v0/bundles"): lambda r, now: self._search(_body(r), now),
            ("GET", "v0/bundles"): lambda r, now: self._search(json.loads(r.query.get("q", "{}")), now),
            ("PUT", "v0/search/asks"): lambda r, now: self._search(_body(r)["q"], now),
            ("GET", "v1/instances"): self._list,
            ("GET", "v0/users/current"): self._user,
            ("GET", "v0/charges"): self._charges,
            ("GET", "v0/ssh"): lambda _r, _now: [],
        }
        if found := table.get((request.method, "/".join(parts))):
            return found
        if parts[:2] == ("v0", "webhooks"):
            return lambda r, now: self._webhooks(r.method, parts[2:], _body(r), now)
        if len(parts) >= 3 and parts[-1].isdigit():
            number = int(parts[-1])
            by_id: dict[tuple[str, str], Callable[[Request, datetime], Any]] = {
                ("PUT", "v0/asks"): lambda r, now: self._create(number, _body(r), now),
                ("GET", "v0/instances"): lambda _r, now: self._show(number, now),
                ("PUT", "v0/instances"): lambda r, now: self._change(number, _body(r), now),
                ("DELETE", "v0/instances"): lambda _r, now: self._destroy(number, now),
                ("PUT", "v0/instances/bid_price"): lambda r, now: self._bid(number, _body(r), now),
            }
            if found := by_id.get((request.method, "/".join(parts[:-1]))):
                return found
        raise Refused(404, "not_found", f"no such endpoint: {request.method} {request.path}")

    def _pace(self, endpoint: str, now: datetime) -> None:
        interval = self._intervals.get(endpoint, 0.0)
        last = self._calls.get(endpoint)
        if last is not None and (now - last).total_seconds() < interval:
            if endpoint == "create":
                self._calls[endpoint] = now - timedelta(seconds=interval - CREATE_PENALTY_S)
            raise Refused(
                429, "too_frequent", f"API requests too frequent: endpoint threshold={interval}"
            )  # fmt: skip
        self._calls[endpoint] = now

    def _webhooks(self, method: str, words: tuple[str, ...], body: dict[str, Any], now: datetime) -> Any:
        try:
            return self.webhooks.handle(method, words, body, now)
        except WebhookRefused as refused:
            raise Refused(refused.status, refused.slug, str(refused)) from None

    # --- search and create

    def _search(self, query: dict[str, Any], now: datetime) -> Any:
        if self.search_quota_used:
            raise Refused(429, "search_quota_exceeded", "daily search quota exceeded")
        if self._intervals.get("list"):
            self._searches = [at for at in self._searches if (now - at).total_seconds() < 60]
            if len(self._searches) >= SEARCHES_PER_MINUTE:
                raise Refused(429, "too_frequent", "API requests too frequent")
            self._searches.append(now)
        bid = query.get("type") in ("bid", "interruptible")
        storage = float(query.get("allocated_storage") or 5.0)
        taken = {c.machine["machine_id"] for c in self._contracts.values() if c.listed}
        machines = {machine["machine_id"]: machine for machine in self._machines}
        rows = [
            offer(machines[machine_id], ask, bid=bid, storage_gb=storage, now=now)
            for ask, machine_id in self._asks.items()
            if machine_id not in taken and machine_id not in self._away
        ]
        try:
            return {"offers": matching(rows, query)}
        except BadFilter as error:
            raise Refused(400, "invalid_request", f"{error} is not a valid search key") from None

    def _create(self, ask: int, body: dict[str, Any], now: datetime) -> Any:
        self._pace("create", now)
        machine = self._free_machine(ask, gone_status=410 if body.get("cancel_unavail") else 404)
        if self._credit <= 0:
            raise Refused(400, "insufficient_credit", "Your account lacks credit; see the billing page.")
        bid = body.get("price")
        contract = self._new_contract(machine, body, now)
        if bid is not None and Decimal(str(bid)) < Decimal(machine["min_bid"]):
            contract.stop(now, "bid too low")
            raise Refused(400, "bid_too_low", "your bid is below the minimum", new_contract=contract.id)
        if self.creates_answer_500:
            raise Refused(500, "internal", "Internal server error")
        return {"success": True, "new_contract": contract.id}

    def _free_machine(self, ask: int, gone_status: int) -> dict[str, Any]:
        machine_id = self._asks.get(ask)
        taken = {c.machine["machine_id"] for c in self._contracts.values() if c.listed}
        if machine_id is None or machine_id in taken or machine_id in self._away:
            code = {404: "404/3603", 410: "410/3907"}[gone_status]
            msg = f"error {code}: no_such_ask Instance type by id {ask} is not available."
            error = "no_such_ask" if gone_status == 410 else "invalid_args"
            raise Refused(gone_status, error, msg, ask_id=ask)
        return next(machine for machine in self._machines if machine["machine_id"] == machine_id)

    def _new_contract(self, machine: dict[str, Any], body: dict[str, Any], now: datetime) -> Contract:
        self._next_id += 1
        bid, boot_s = body.get("price"), machine["boot_s"]
        usd_per_hour = str(bid) if bid is not None else str(Decimal(machine["dph_base"]) * self.price_factor)
        contract = Contract(
            id=self._next_id,
            machine={**machine, "dph_base": usd_per_hour},
            label=str(body.get("label") or ""),
            image=str(body.get("image") or ""),
            disk_gb=max(8, int(float(body.get("disk") or 8))),
            env={str(k): str(v) for k, v in (body.get("env") or {}).items()},
            onstart=str(body.get("onstart") or ""),
            is_bid=bid is not None,
            bid=str(bid) if bid is not None else None,
            created_at=now,
            boots=[("loading", boot_s * 0.3), ("created", boot_s * 0.8), ("running", boot_s)],
            disk_since=now,
            message=str(machine.get("boot_message", "")),
        )
        self._contracts[contract.id] = self._unsettled[contract.id] = contract
        return contract

    # --- contracts

    def _list(self, request: Request, now: datetime) -> Any:
        self._pace("list", now)
        rows = [contract.row(now) for contract in self._contracts.values() if contract.is_in_listing(now)]
        token = request.query.get("after_token") or "0"
        if not token.isdigit():
            raise Refused(400, "invalid_args", "after_token is not one of ours")
        after = int(token)
        limit = min(PAGE_MAX, int(request.query.get("limit") or PAGE_MAX))
        page = [row for row in rows if row["id"] > after][:limit]
        more = bool(page) and page[-1]["id"] < rows[-1]["id"]
        return {
            "success": True,
            "instances": page,
            "next_token": str(page[-1]["id"]) if more else None,
            "total_instances": len(rows),
            "instances_found": len(rows),
        }

    def _show(self, id: int, now: datetime) -> Any:
        self._pace("show", now)
        contract = self._contracts.get(id)
        return {"instances": contract.row(now) if contract and contract.listed else None}

    def _change(self, id: int, body: dict[str, Any], now: datetime) -> Any:
        self._pace("change", now)
        contract = self._listed(id)
        if "label" in body:
            contract.label = str(body["label"])
        if body.get("state") == "stopped":
            contract.stop(now)
            self._effects.append(Effect("stop", id, contract.label))
        if body.get("state") == "running" and contract.cur == "stopped":
            if self.start_refused:
                msg = "Required resources are currently unavailable, state change queued."
                return {"success": False, "error": "resources_unavailable", "msg": msg}
            contract.cur = contract.next = contract.intended = "running"
            contract.run(now)
            self._effects.append(_start(contract))
        return {"success": True}

    def _destroy(self, id: int, now: datetime) -> Any:
        self._pace("destroy", now)
        contract = self._listed(id)
        self._end(contract, now)
        return {"success": True}

    def _bid(self, id: int, body: dict[str, Any], now: datetime) -> Any:
        self._pace("bid", now)
        contract = self._listed(id)
        contract.accrue(now)
        contract.bid = str(body.get("price") or contract.machine["min_bid"])
        contract.machine = {**contract.machine, "dph_base": contract.bid}
        return {"success": True}

    def _listed(self, id: int) -> Contract:
        contract = self._contracts.get(id)
        if contract is None or not contract.listed:
            raise Refused(404, "no_such_instance", f"instance {id} not found")
        return contract

    def _end(self, contract: Contract, now: datetime) -> None:
        contract.end(now)
        self._effects.append(Effect("vanish", contract.id, contract.label))
        machine_id = contract.machine["machine_id"]
        # the machine returns to the market under another offer id
        self._asks = {ask: m for ask, m in self._asks.items() if m != machine_id}
        self._asks[max(self._asks, default=7000) + 1] = machine_id

    # --- money

    def _user(self, _request: Request, now: datetime) -> Any:
        credit = float(self.credit(now))
        return {"id": 1, "email": "demo@example.com", "balance": 0, "credit": credit, "username": "demo"}

    def _charges(self, request: Request, now: datetime) -> Any:
        self._pace("charges", now)
        span = json.loads(request.query.get("select_filters", "{}")).get("day", {})
        low_s, high_s = float(span.get("gte", 0)), float(span.get("lte", 1e12))
        rows = [contract.charge_row(now, low_s, high_s) for contract in self._contracts.values()]
        found = [row for row in rows if row]
        limit, after = min(500, int(request.query.get("limit") or 100)), int(request.query.get("after_token") or 0)
        page = found[after : after + limit]
        token = str(after + limit) if after + limit < len(found) else None
        return {"success": True, "results": page, "count": len(page), "total": len(found), "next_token": token}

    def credit(self, now: datetime) -> Decimal:
        return self._credit - self._settled - sum((c.spent(now) for c in self._open()), Decimal(0))

    def _open(self) -> list[Contract]:
        """Contracts that may still cost something; the others' bills are added up once."""
        for id, contract in list(self._unsettled.items()):
            if not contract.listed:
                self._settled += self._unsettled.pop(id).spent(contract.ended_at or contract.created_at)
        return list(self._unsettled.values())

    def billed(self, id: int, now: datetime) -> dict[str, Decimal]:
        """kind -> dollars: exactly what the charges call says at the same moment."""
        return self._contracts[id].totals(now)

    # --- time and faults

    def tick(self, now: datetime) -> None:
        """Boot what is due; without credit everything stops."""
        for contract in self._open():
            if contract.cur == "running" and contract.actual in (None, "loading", "created"):
                self._boot(contract, now)
        if self._unsettled and self.credit(now) <= 0:
            for contract in self._open():
                if contract.cur != "stopped":
                    self._stopped(contract, now, "no credit")

    def _boot(self, contract: Contract, now: datetime) -> None:
        age_s = (now - contract.created_at).total_seconds()
        reached = [status for status, after_s in contract.boots if age_s >= after_s]
        if reached and reached[-1] == "running":
            contract.run(now)
            self._effects.append(_start(contract))
        elif reached:
            contract.actual = reached[-1]

    def drain(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def contracts(self) -> list[Contract]:
        """Those that are listed."""
        return [contract for contract in self._contracts.values() if contract.listed]

    def all_contracts(self) -> list[Contract]:
        return list(self._contracts.values())

    def contract_of(self, label: str) -> int | None:
        return next((c.id for c in self._contracts.values() if c.label == label and c.listed), None)

    def traffic(self, id: int, up_bytes: int, down_bytes: int, now: datetime) -> None:
        self._contracts[id].transfer(up_bytes, down_bytes, now)

    def outbid(self, id: int, now: datetime) -> None:
        """Somebody else took the GPU: processes killed, disk kept and billed."""
        self._stopped(self._contracts[id], now, "")
        self.webhooks.emit("client:outbid", f"Instance {id} was outbid.", now)

    def lose(self, id: int, now: datetime) -> None:
        """The machine vanishes from the listing; nothing of it bills from now on."""
        self._end(self._contracts[id], now)
        self.webhooks.emit("client:instance_offline", f"Instance {id} is offline.", now)

    def exited(self, id: int, now: datetime) -> None:
        """The container died; the contract runs, and bills, on. What it used until now is settled first."""
        contract = self._contracts[id]
        contract.accrue(now)
        if contract.actual == "running" and contract.cur == "running":
            contract.actual, contract.message = "exited", "container exited"

    def offline(self, id: int, now: datetime, *, back: bool = False) -> None:
        """The host is lost (or back): no GPU or disk charge meanwhile."""
        contract = self._contracts[id]
        contract.accrue(now)
        contract.offline = not back
        contract.gpu_since = now if back and contract.actual == "running" else None
        contract.disk_since = now if back else None

    def slow_boots(self, boot_s: float) -> None:
        """Every machine rented from now on takes so long."""
        self._machines = [{**machine, "boot_s": boot_s} for machine in self._machines]

    def stuck(self, id: int) -> None:
        """It stays in loading for ever."""
        self._contracts[id].boots = [("loading", 0.0)]

    def tamper(self, machine_id: int | str, **properties: Any) -> bool:
        """Make a machine other than its offer says, for contracts made from now on.

        `boot_s`, `boot_message` (what the market says meanwhile), `wrong_gpu` (its real model), `small_disk` (its
        real GB), `slow_net` (its real Mb/s). `dph_base` and `min_bid` are prices, and shown. False when there is no
        such machine.
        """
        found = [machine for machine in self._machines if str(machine["machine_id"]) == str(machine_id)]
        for machine in found:
            machine.update(properties)
        return bool(found)

    def machines(self, gpu: str) -> list[dict[str, Any]]:
        """All of one model, rented ones and those that are away too."""
        return [dict(machine) for machine in self._machines if machine["gpu_name"] == gpu]

    def leave(self, machine_id: int) -> None:
        """Its host takes it off the market; who rents it keeps it."""
        self._away.add(machine_id)

    def come_back(self, machine_id: int) -> None:
        self._away.discard(machine_id)

    def set_credit(self, usd: str) -> None:
        self._credit = Decimal(usd)

    def _stopped(self, contract: Contract, now: datetime, message: str) -> None:
        contract.stop(now, message)
        self._effects.append(Effect("stop", contract.id, contract.label))

    # --- the journal

    def to_json(self) -> dict[str, Any]:
        return {
            "api_key": self._api_key,
            "machines": self._machines,
            "asks": list(self._asks.items()),
            "away": sorted(self._away),
            "contracts": [contract.to_json() for contract in self._contracts.values()],
            "next_id": self._next_id,
            "credit": str(self._credit),
            "intervals": dict(self._intervals),
            "webhooks": self.webhooks.to_json(),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any], *, rng: random.Random) -> Self:
        sim = cls(
            rng=rng, api_key=plain["api_key"], intervals=plain["intervals"], machines=plain["machines"]
        )  # fmt: skip
        sim._asks, sim._away = dict(plain["asks"]), set(plain.get("away", ()))
        sim._contracts = {contract["id"]: Contract.from_json(contract) for contract in plain["contracts"]}
        sim._unsettled = dict(sim._contracts)
        sim._next_id, sim._credit = plain["next_id"], Decimal(plain["credit"])
        sim.webhooks.restore(plain["webhooks"])
        return sim


def _start(contract: Contract) -> Effect:
    return Effect("start", contract.id, contract.label, contract.env, contract.onstart, contract.hardware())


def _body(request: Request) -> dict[str, Any]:
    if (body := json_body(request)) is None:
        raise Refused(400, "invalid_args", "the body is not JSON")
    return body
