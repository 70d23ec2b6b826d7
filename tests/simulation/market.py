"""The market of the world: the simulated Vast.ai behind the real adapter, answering as badly as the vendor can."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from common.adapters.vast import Vast
from infra.demo.vast import VastSim
from infra.demo.vast_contract import Contract
from infra.demo.wire import Answer, Request
from tests.simulation.clock import Loop
from tests.simulation.faults import Faults, Strike

API_KEY = "sim-key-canary-7f3a"
GPU = "RTX 4090"
MACHINES = 14
BOOT_S = (15.0, 90.0)
CHARGES_LAG_S = 90.0
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
FUZZ = (0, -1, 1e9, "free", None, "NaN")

NOT_DONE: Mapping[str, Answer] = {
    "body_html_502": Answer(502, HTML, "text/html"),
    "body_500": Answer(500, b'{"success": false, "error": "internal", "msg": "internal error"}'),
    "body_success_false": Answer(200, b'{"success": false, "error": "try_again", "msg": "please try again"}'),
    "body_401": Answer(401, b'{"success": false, "error": "auth_error", "msg": "Invalid user key"}'),
    "body_404": Answer(404, b'{"success": false, "error": "not_found", "msg": "no such endpoint"}'),
}
"""Answers of something in front of the market: it never saw the request."""
DONE: Mapping[str, Callable[[Answer], Answer]] = {
    "body_html_200": lambda _: Answer(200, HTML, "text/html"),
    "body_empty": lambda _: Answer(200, b""),
    "body_truncated": lambda answer: Answer(answer.status, answer.body[: len(answer.body) // 2]),
    "body_list": lambda answer: Answer(answer.status, b"[" + answer.body + b"]"),
    "body_missing_field": lambda _: Answer(200, b'{"success": true}'),
    "body_500_done": lambda _: Answer(500, b'{"success": false, "error": "internal"}'),
}
"""Answers to a request that was carried out."""


@dataclass
class Fate:
    """What the world has decided about one machine."""

    fails_destroy_until: float = 0.0
    throttles_destroy_until: float = 0.0
    defers_destroy_s: float = 0.0
    refuses_boot: bool = False
    is_mute: bool = False
    is_unmeasurable: bool = False
    line: float = 1.0
    """Part of the advertised bandwidth."""
    has_small_disk: bool = False


@dataclass
class Account:
    """`handle` is the vendor's wire, for the adapter in process and for the HTTP face alike."""

    loop: Loop
    faults: Faults
    phases: Callable[[str], set[str]]
    rng: random.Random
    sim: VastSim = field(init=False)
    fates: dict[int, Fate] = field(default_factory=dict)
    created: Callable[[Contract], None] = lambda _contract: None
    destroying: Callable[[Contract], None] = lambda _contract: None
    after: Callable[[], None] = lambda: None
    """Whenever the market's state may have changed."""
    has_offers: bool = True
    is_fuzzy: bool = False
    _doomed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._not_done = {knob: answer for knob, answer in NOT_DONE.items() if knob in self.faults.on}
        self._done = {knob: mar for knob, mar in DONE.items() if knob in self.faults.on}
        self.sim = VastSim(rng=self.rng, api_key=API_KEY, machines=_machines(self.rng))

    def handle(self, request: Request, now: datetime) -> Answer:
        verb, contract = self._verb(request)
        about = contract.label if contract else _label(request) if verb == "create" else ""
        strike = self._striker(about)
        for knob, answer in self._not_done.items():
            if strike(knob):
                return answer
        answer = self._special(verb, contract, strike) or self._carry_out(request, verb, contract, strike, now)
        self.after()
        return self._marred(verb, answer, strike)

    def _striker(self, about: str) -> Callable[[str], Strike | None]:
        on = self.faults.on
        return lambda knob: self.faults.strike(knob, lambda: self.phases(about)) if knob in on else None

    def _verb(self, request: Request) -> tuple[str, Contract | None]:
        parts = request.path.strip("/").split("/")
        number = int(parts[-1]) if parts[-1].isdigit() else None
        if parts[2] == "asks":
            return "create", None
        if number is None:
            return {"bundles": "search", "instances": "list"}.get(parts[2], parts[2]), None
        found = next((c for c in self.sim.all_contracts() if c.id == number), None)
        return {"GET": "show", "DELETE": "destroy"}.get(request.method, "change"), found

    # --- what the vendor itself does

    def _special(self, verb: str, contract: Contract | None, strike: Callable[[str], Strike | None]) -> Answer | None:
        if verb == "search" and strike("search_quota"):
            return _json(429, {"success": False, "error": "search_quota_exceeded", "msg": "daily quota"})
        if verb == "create" and strike("offer_gone"):
            return _json(410, {"success": False, "error": "no_such_ask", "msg": "error 410/3907: no_such_ask"})
        if verb != "destroy" or contract is None:
            return None
        fate = self.fate(contract.id)
        if fate.fails_destroy_until > self.loop.now:
            return _json(500, {"success": False, "error": "internal", "msg": "could not reach the host"})
        if fate.throttles_destroy_until > self.loop.now:
            return Answer(429, b"API requests too frequent: endpoint threshold=3.0", "text/plain")
        if fate.defers_destroy_s and contract.listed:
            self._end_later(contract, fate.defers_destroy_s)
            return _json(200, {"success": True})
        return None

    def _end_later(self, contract: Contract, after_s: float) -> None:
        self.destroying(contract)
        if contract.id in self._doomed:
            return
        self._doomed.add(contract.id)

        def end() -> None:
            if contract.listed:
                self.sim.lose(contract.id, self.loop.clock())
                self.after()

        self.loop.after(after_s, end)

    def _carry_out(
        self,
        request: Request,
        verb: str,
        contract: Contract | None,
        strike: Callable[[str], Strike | None],
        now: datetime,
    ) -> Answer:
        if verb == "destroy" and contract and contract.listed:
            self.destroying(contract)
            answer = self.sim.handle(request, now)
            if not contract.listed and (ghost := strike("listing_ghosts")):
                contract.ghost_until = now + timedelta(seconds=ghost.length_s())
            return answer
        known = self.sim._next_id
        answer = self.sim.handle(request, now)
        if verb == "create" and self.sim._next_id > known:
            return self._created(self.sim.all_contracts()[-1], answer, strike, now)
        return answer

    def _created(
        self, contract: Contract, answer: Answer, strike: Callable[[str], Strike | None], now: datetime
    ) -> Answer:
        fate = self.fates[contract.id] = self._fate(contract, strike, now)
        if fate.refuses_boot:
            pass
        self.created(contract)
        if strike("refused_but_rented"):
            contract.stop(now, "bid too low")
            body = {"success": False, "error": "bid_too_low", "msg": "too low", "new_contract": contract.id}
            return _json(400, body)
        return answer

    def _fate(self, contract: Contract, strike: Callable[[str], Strike | None], now: datetime) -> Fate:
        """Drawn once, at the create."""
        fate = Fate()
        if lag := strike("listing_lags"):
            contract.listed_from = now + timedelta(seconds=lag.length_s())
        if strike("boot_stuck"):
            contract.boots = [("loading", 0.0)]
        elif slow := strike("boot_slow"):
            contract.boots = [("loading", 1.0), ("running", BOOT_S[1] + slow.length_s())]
        elif died := strike("boot_dies"):
            after_s = 5 + 60 * died.rng.random()
            self.loop.after(after_s, lambda: self._die_at_boot(contract))
        if moved := strike("price_moves"):
            dearer = Decimal(contract.machine["dph_base"]) * Decimal(str(round(0.8 + moved.rng.random(), 2)))
            contract.machine = {**contract.machine, "dph_base": f"{dearer:.4f}"}
        fate.refuses_boot = strike("boot_refuses") is not None
        fate.is_mute = strike("mute") is not None
        fate.has_small_disk = (small := strike("small_disk")) is not None
        fate.is_unmeasurable = strike("attest_missing") is not None
        if wrong := strike("wrong_gpu"):
            contract.machine = {**contract.machine, "wrong_gpu": wrong.rng.choice(("RTX 3090", "RTX 4090 Laptop GPU"))}
        if small and small.rng.random() < 0.5:
            contract.machine = {**contract.machine, "small_disk": contract.disk_gb // 4}
        if slow := strike("slow_line"):
            fate.line = 0.01 + 0.3 * slow.rng.random()
        if failing := strike("destroy_fails"):
            fate.fails_destroy_until = self.loop.now + 300 + failing.length_s()
        if throttled := strike("destroy_throttled"):
            fate.throttles_destroy_until = self.loop.now + 300 + throttled.length_s()
        if deferred := strike("destroy_deferred"):
            fate.defers_destroy_s = 5 + deferred.length_s()
        return fate

    def _die_at_boot(self, contract: Contract) -> None:
        """As the vendor shows it: the contract runs on, the container has exited with an OCI error."""
        if contract.listed and contract.cur == "running" and contract.actual != "running":
            contract.boots = []
            contract.actual, contract.message = "exited", "OCI runtime create failed"

    def fate(self, id: int) -> Fate:
        return self.fates.setdefault(id, Fate())

    # --- what becomes of an answer

    def _marred(self, verb: str, answer: Answer, strike: Callable[[str], Strike | None]) -> Answer:
        for knob, mar in self._done.items():
            if strike(knob):
                return mar(answer)
        if answer.status != 200:
            return answer
        if verb == "search":
            return self._searched(answer, strike)
        if verb == "charges" and strike("charges_lag"):
            return self._charged_late(answer)
        return self._listed(answer, strike) if verb == "list" else answer

    def _charged_late(self, answer: Answer) -> Answer:
        since = self.loop.clock() - timedelta(seconds=CHARGES_LAG_S)
        late = {f"instance-{c.id}" for c in self.sim.all_contracts() if c.ended_at and c.ended_at > since}
        body = json.loads(answer.body)
        rows = [row for row in body["results"] if row["source"] not in late]
        return _json(200, {**body, "results": rows, "count": len(rows)})

    def _searched(self, answer: Answer, strike: Callable[[str], Strike | None]) -> Answer:
        if strike("body_null_rows"):
            return _json(200, {"offers": None})
        if not self.has_offers:
            return _json(200, {"offers": []})
        if not self.is_fuzzy:
            return answer
        body = json.loads(answer.body)
        for number, row in enumerate(body["offers"]):
            if number % 2 == 0:
                row["dph_base"] = row["dph_total"] = FUZZ[number // 2 % len(FUZZ)]
        return _json(200, body)

    def _listed(self, answer: Answer, strike: Callable[[str], Strike | None]) -> Answer:
        if strike("body_null_rows"):
            return _json(200, {"success": True, "instances": None})
        if omits := strike("listing_omits"):
            body = json.loads(answer.body)
            rows = [row for row in body["instances"] if omits.rng.random() < 0.5]
            missing = len(body["instances"]) - len(rows)
            total = body["total_instances"] - missing
            return _json(200, {**body, "instances": rows, "total_instances": total, "instances_found": total})
        if strike("listing_miscounts"):
            body = json.loads(answer.body)
            return _json(200, {**body, "total_instances": body["total_instances"] + 1})
        return answer

    # --- what happens without a request

    def stop(self, contract: Contract, now: datetime) -> None:
        self.sim.outbid(contract.id, now)
        self.after()

    def lose(self, contract: Contract, now: datetime) -> None:
        self.sim.lose(contract.id, now)
        self.after()

    def strangers(self, label: str, now: datetime) -> Contract | None:
        """A machine that somebody else rents on the account; None when the market has no free one."""
        free = [ask for ask, machine in self.sim._asks.items() if not self._is_taken(machine)]
        if not free:
            return None
        body = json.dumps({"label": label, "image": "other", "disk": 20}).encode()
        headers = {"Authorization": f"Bearer {API_KEY}"}
        self.sim._calls.pop("create", None)
        answer = self.sim.handle(Request("PUT", f"/api/v0/asks/{free[-1]}/", {}, headers, body), now)
        return self.sim.all_contracts()[-1] if answer.status == 200 else None

    def _is_taken(self, machine_id: int) -> bool:
        return any(contract.machine["machine_id"] == machine_id for contract in self.sim.contracts())


class LightHttp:
    """In place of the adapter's HTTP client: its requests go to `handle` as they are, without a socket."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._headers = {"authorization": f"Bearer {API_KEY}"}

    def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, str] | None = None) -> Response:
        body = _dumped(json) if json is not None else b""
        request = Request(method, path, params or {}, self._headers, body)
        return Response(self._account.handle(request, self._account.loop.clock()))

    def close(self) -> None:
        pass


class Response:
    """What the adapter looks at of a response."""

    def __init__(self, answer: Answer) -> None:
        self.status_code, self.content = answer.status, answer.body
        self.is_success = 200 <= answer.status < 300

    @property
    def text(self) -> str:
        return self.content.decode()


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


def _label(request: Request) -> str:
    return str(json.loads(request.body).get("label") or "")


def _dumped(body: Any) -> bytes:
    return json.dumps(body).encode()


def _json(status: int, body: Any) -> Answer:
    return Answer(status, json.dumps(body).encode())
