"""The simulated Google of the world: the standbys' machines and addresses.

The real adapter stands on it (`common/adapters/gcp`), with lighter clients than Google's own: those take three seconds
to import and a millisecond for each call. What a call is answered with is Google's JSON all the same, and one test
proves that the adapter says the same over both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from google.api_core.exceptions import from_http_status

from common.adapters.gcp import ANONYMOUS, GcpCompute
from common.domain.region import region_of, regions
from infra.demo.gcp.compute import ComputeSim
from infra.demo.gcp.compute_vm import Vm
from infra.demo.gcp.compute_work import OPERATION_S
from infra.demo.gcp.sim import Refused
from tests.simulation.clock import Loop
from tests.simulation.faults import Faults, Strike
from tests.simulation.market import Fate

PROJECT = "sim-project"
PREEMPTION_S = 30.0
SOON_S = 0.01
LATER_FAILURES = {
    "insert": ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "no room, says its operation", 503),
    "start": ("ZONE_RESOURCE_POOL_EXHAUSTED", "no room, says its operation", 503),
    "delete": ("INTERNAL_ERROR", "the operation failed", 500),
}
"""What an operation may end with after its call was answered with success."""


@dataclass
class Google:
    """One project. To the world it is what an account at a marketplace is."""

    loop: Loop
    faults: Faults
    phases: Callable[[str], set[str]]
    rng: random.Random
    sim: ComputeSim = field(init=False)
    fates: dict[Any, Fate] = field(default_factory=dict)
    created: Callable[[Vm], None] = lambda _vm: None
    destroying: Callable[[Vm], None] = lambda _vm: None
    after: Callable[[], None] = lambda: None
    """Whenever a machine's state may have changed."""
    publishes_a_bill = False
    name = "gcp"

    def __post_init__(self) -> None:
        self.sim = ComputeSim(rng=self.rng, project=PROJECT, requests_per_minute=None)

    # --- one call

    def ask(self, verb: str, about: str, do: Callable[[datetime], Any]) -> Row:
        """Carry a call out and answer as Google's client does; raises what it raises."""
        now = self.loop.clock()
        self.sim.tick(now)
        before = len(self.sim.all_contracts())
        self._prepare(verb, about)
        try:
            return Row(do(now))
        except Refused as refused:
            row = {"message": str(refused), "domain": "global", "reason": refused.code}
            raise from_http_status(refused.status, str(refused), errors=[row]) from refused
        finally:
            self._forget()
            for vm in self.sim.all_contracts()[before:]:
                self._born(vm)
            self.after()
            self._tick_in(self.sim.book.operation_s)

    def _prepare(self, verb: str, about: str) -> None:
        """What goes wrong with this one call, or with the operation that it begins."""
        if verb in LATER_FAILURES and self._strike("google_fails_later", about):
            self.sim.book.fails_later[verb] = LATER_FAILURES[verb]
        self.sim.creates_answer_500 = verb == "insert" and self._strike("google_500_done", about) is not None
        if verb == "delete" and self._strike("google_delete_fails", about):
            self.sim.deletes_fail = 1
        if verb == "list" and (strike := self._strike("google_omits", about)):
            self.sim.list_omits = {vm.name for vm in self.sim.contracts() if strike.rng.random() < 0.5}
        if verb == "list" and self._strike("google_unreachable", about):
            self.sim.unreachable = {vm.zone for vm in self.sim.contracts()}

    def _forget(self) -> None:
        """What goes wrong with the next call is drawn anew."""
        self.sim.creates_answer_500, self.sim.deletes_fail = False, 0
        self.sim.list_omits, self.sim.unreachable = set(), set()

    def _born(self, vm: Vm) -> None:
        self.fates[vm.id] = Fate(is_mute=self._strike("standby_mute", vm.label) is not None)
        self.created(vm)

    def _strike(self, knob: str, about: str) -> Strike | None:
        return self.faults.strike(knob, lambda: self.phases(about)) if knob in self.faults.on else None

    def _tick_in(self, seconds: float) -> None:
        self.loop.after(seconds + SOON_S, self.tick)

    def tick(self) -> None:
        self.sim.tick(self.loop.clock())
        self.after()

    # --- what an account is asked

    def fate(self, id: Any) -> Fate:
        return self.fates.setdefault(id, Fate())

    def place(self, vm: Vm) -> str:
        return region_of(vm.zone)

    def exit(self, vm: Vm) -> None:
        """Google does not look inside."""

    def stop(self, vm: Vm, now: datetime) -> None:
        """The machine switches itself off from within; its disk stays."""
        self.sim.shut_down(vm.id, now)
        self.after()

    def lose(self, vm: Vm, now: datetime) -> None:
        self.sim.lose(vm.id, now)
        self.after()

    def preempt(self, vm: Vm) -> None:
        self.sim.preempt(vm.label, self.loop.clock())
        self._tick_in(PREEMPTION_S)

    def billed(self, vm: Vm, now: datetime) -> dict[Any, Any]:
        return self.sim.billed(vm.id, now)

    def ran_s(self, vm: Vm) -> dict[str, float]:
        """kind -> seconds that it billed; at the machine's own rates, for Google shows no bill to compare with."""
        totals = self.sim.billed(vm.id, self.loop.clock())
        rates = {"gpu": vm.machine_usd_per_hour, "disk": vm.disk_usd_per_hour}
        return {kind: float(totals[kind] / rate * 3600) for kind, rate in rates.items() if kind in totals}

    # --- what goes wrong for a while

    def stock_out(self, strike: Strike, until: float) -> None:
        """In one zone of each region where a machine of ours is, or in all of them."""
        near = {region_of(vm.zone) for vm in self.sim.all_contracts()} or {"us-west1", "europe-north1"}
        zones = [zone for name in sorted(near) for zone in regions()[name].zones]
        hit = zones if strike.rng.random() < 0.5 else [strike.rng.choice(zones)]
        for zone in hit:
            self.sim.stockout(zone, self.loop.clock() + timedelta(seconds=until - self.loop.now))

    def use_up_quota(self, strike: Strike) -> None:
        self.sim.quota_machines = len(self.sim.contracts())
        self.sim.quota_addresses = len(self.sim.addresses()) if strike.rng.random() < 0.5 else None

    def calm(self) -> None:
        """Every fault that lasts is over."""
        sim = self.sim
        sim.quota_machines = sim.quota_addresses = None
        sim.slow(OPERATION_S)
        sim._stockouts.clear()


# --- the adapter, with light clients


def adapter(google: Google) -> GcpCompute:
    market = GcpCompute(ANONYMOUS, project=PROJECT, base_url="http://127.0.0.1:1")
    clients = {"_instances": Instances, "_addresses": Addresses, "_zone_operations": Work, "_region_operations": Work}
    market.__dict__.update({name: kind(google) for name, kind in clients.items()})
    return market


@dataclass
class Client:
    """In place of one of Google's clients: its calls are carried out as they are, without a message or a socket."""

    google: Google

    @property
    def sim(self) -> ComputeSim:
        return self.google.sim


class Instances(Client):
    def insert_unary(self, request: Mapping[str, Any], **_more: Any) -> Row:
        body, id = _json(request["instance_resource"]), request["request_id"]
        return self.google.ask("insert", body["name"], lambda now: self.sim.insert(request["zone"], body, id, now))

    def get(self, request: Mapping[str, Any], **_more: Any) -> Row:
        return self.google.ask("get", request["instance"], lambda _now: self.sim.vm_shown(self.sim.vm(_id(request))))

    def start_unary(self, request: Mapping[str, Any], **_more: Any) -> Row:
        return self.google.ask("start", request["instance"], lambda now: self.sim.start(_id(request), now))

    def delete_unary(self, request: Mapping[str, Any], **_more: Any) -> Row:
        def delete(now: datetime) -> Any:
            self.google.destroying(self.sim.vm(_id(request)))
            return self.sim.delete(_id(request), now)

        return self.google.ask("delete", request["instance"], delete)

    def delete_access_config_unary(self, request: Mapping[str, Any], **_more: Any) -> Row:
        access = request["access_config"]
        return self.google.ask("detach", request["instance"], lambda now: self.sim.detach(_id(request), access, now))

    def aggregated_list(self, request: Mapping[str, Any], **_more: Any) -> Pages:
        def rows(_now: datetime) -> Any:
            shown = [(vm.zone, self.sim.vm_shown(vm)) for vm in self.sim.contracts()]
            here = [(zone, row) for zone, row in shown if row["name"] not in self.sim.list_omits]
            return _aggregated("instances", here, self.sim.unreachable)

        return Pages([self.google.ask("list", "", rows)])


class Addresses(Client):
    def get(self, request: Mapping[str, Any], **_more: Any) -> Row:
        name, region = request["address"], request["region"]
        return self.google.ask("address", name, lambda _now: self.sim.address_shown(self.sim.address(region, name)))

    def insert_unary(self, request: Mapping[str, Any], **_more: Any) -> Row:
        name, id = request["address_resource"]["name"], request.get("request_id")
        return self.google.ask("reserve", name, lambda now: self.sim.reserve(request["region"], name, id, now))

    def delete_unary(self, request: Mapping[str, Any], **_more: Any) -> Row:
        name = request["address"]
        return self.google.ask("release", name, lambda now: self.sim.release(request["region"], name, now))

    def aggregated_list(self, request: Mapping[str, Any], **_more: Any) -> Pages:
        def rows(_now: datetime) -> Any:
            shown = [(one.region, self.sim.address_shown(one)) for one in self.sim.addresses()]
            return _aggregated("addresses", shown, set())

        return Pages([self.google.ask("addresses", "", rows)])


class Work(Client):
    """Operations, of zones and of regions."""

    def get(self, request: Mapping[str, Any], **_more: Any) -> Row:
        def found(_now: datetime) -> Any:
            for work in self.sim.book:
                if work.name == request["operation"]:
                    return work.shown(PROJECT)
            raise Refused(404, "notFound", f"The resource '/operations/{request['operation']}' was not found")

        return self.google.ask("operation", "", found)

    def list(self, request: Mapping[str, Any], **_more: Any) -> Pages:
        target = request["filter"].removeprefix('targetLink eq ".*').removesuffix('"')

        def rows(_now: datetime) -> Any:
            shown = [work.shown(PROJECT) for work in self.sim.book]
            return {"kind": "compute#operationList", "items": [r for r in shown if r["targetLink"].endswith(target)]}

        return Pages([self.google.ask("operations", "", rows)])


@dataclass(frozen=True)
class Pages:
    pages: list[Row]


def _id(request: Mapping[str, Any]) -> str:
    return f"{request['zone']}/{request['instance']}"


def _aggregated(kind: str, rows: Iterable[tuple[str, Any]], unreachable: set[str]) -> dict[str, Any]:
    items: dict[str, Any] = {}
    for place, row in rows:
        scope: dict[str, Any] = items.setdefault(place, {kind: []})
        if place in unreachable:
            items[place] = {"warning": {"code": "UNREACHABLE"}}
        elif kind in scope:
            scope[kind].append(row)
    return {
        "kind": f"compute#{kind}",
        "items": items,
        "unreachables": [f"zones/{place}" for place in sorted(unreachable)],
    }


def _json(value: Any) -> Any:
    """A message's fields in Google's JSON."""
    if isinstance(value, dict):
        return {_camel(key.removesuffix("_")): _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, list) else value


@lru_cache(1000)
def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


class Word(str):
    """A text, or an enum's value: both look the same in JSON."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return str(self)


LISTS = {"network_interfaces", "access_configs", "users", "errors", "unreachables", "instances", "addresses", "items"}
MESSAGES = {"warning", "error"}
NUMBERS = {"http_error_status_code"}


class Row:
    """Google's JSON as its client's messages show it: what is absent is empty."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        value = self._fields.get(_camel(name))
        if value is not None:
            return _shown(value, is_map=name == "items")
        return [] if name in LISTS else Row({}) if name in MESSAGES else 0 if name in NUMBERS else Word("")


def _shown(value: Any, *, is_map: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: Row(item) for key, item in value.items()} if is_map else Row(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return Word(value) if isinstance(value, str) else value


__all__ = ["Google", "adapter"]
