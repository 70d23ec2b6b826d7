"""Google's Compute Engine as a state machine: request in, answer out, `now` passed in. No clock, no thread, no socket.

Every change is an operation that takes its time and may fail when the call has long been answered with success. Faults
are attributes (for everything) and methods (for one): Spot preemption, zones without room, quotas, slow operations,
listings that leave something out, answers that lie about what was done.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from common.domain.region import regions
from common.domain.standby_price import ADDRESS_USD_PER_HOUR
from infra.demo.bill import Bill
from infra.demo.gcp.compute_api import Api, ComputeRefused, add_routes, demand_key, run_startup, terms_asked
from infra.demo.gcp.compute_vm import Reserved, Vm
from infra.demo.gcp.compute_work import Book, Failure, Work
from infra.demo.gcp.sim import Refused
from infra.demo.wire import Answer, Effect, Request, json_answer, json_body

PREEMPTION_NOTICE = timedelta(seconds=30)
MINUTE = timedelta(minutes=1)
REQUESTS_PER_MINUTE = 1500
NO_ROOM = (
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "The zone '{zone}' does not have enough resources available to fulfill the request.  Try a different zone, or try "
    "again later.",
    503,
)


class ComputeSim:
    """One project's Compute Engine: `wire.Marketplace`. A contract's id is `zone/name`."""

    name = "gcp"

    def __init__(
        self,
        *,
        rng: random.Random,
        project: str = "demo-project",
        key_id: str | None = None,
        requests_per_minute: int | None = REQUESTS_PER_MINUTE,
    ) -> None:
        """`key_id`: of the one service account key that is taken; None = nobody has to show one."""
        self.project, self._key_id, self._requests_per_minute = project, key_id, requests_per_minute
        self._rng = rng
        self._vms: dict[str, Vm] = {}
        self._addresses: dict[str, Reserved] = {}
        """By `region/name`."""
        self.book = Book(project)
        self._accrued_at: datetime | None = None
        self._requests: list[datetime] = []
        self._effects: list[Effect] = []
        self._api = Api()
        add_routes(self._api, self)
        self._stockouts: dict[str, datetime] = {}
        self.quota_machines: int | None = None
        self.quota_addresses: int | None = None
        self.creates_answer_500 = False
        """The machine is created, and the answer is a 500."""
        self.deletes_fail = 0
        """So many deletes answer 500 and leave the machine, which bills on."""
        self.list_omits: set[str] = set()
        """Names that listings lack although they exist."""
        self.unreachable: set[str] = set()
        """Zones and regions that listings over all of them cannot reach."""
        self.page_rows = 500
        self.price_factor = Decimal(1)
        """Of machines that are created from now on."""

    # --- the wire

    def handle(self, request: Request, now: datetime) -> Answer:
        self.tick(now)
        try:
            self._admit(request, now)
            return json_answer(200, self._api.answer(request, json_body(request), now))
        except Refused as refused:
            return refused.answer()

    def _admit(self, request: Request, now: datetime) -> None:
        demand_key(request, self._key_id)
        self._requests = [at for at in self._requests if now - at < MINUTE]
        if self._requests_per_minute is not None and len(self._requests) >= self._requests_per_minute:
            raise ComputeRefused(403, "rateLimitExceeded", "Quota exceeded for quota group 'ReadGroup'.")
        self._requests.append(now)

    # --- machines

    def insert(self, zone: str, body: dict[str, Any], request_id: str | None, now: datetime) -> dict[str, Any]:
        if known := self.book.known(request_id):
            return known
        terms, disk_gb, name = terms_asked(zone, body)
        id = f"{zone}/{name}"
        if id in self._vms and self._vms[id].listed:
            raise ComputeRefused(409, "alreadyExists", f"The resource '{self._path(id)}' already exists")
        if self.quota_machines is not None and len(self.contracts()) >= self.quota_machines:
            sentence = f"Quota 'CPUS' exceeded.  Limit: {self.quota_machines}.0 in region {terms.region}."
            raise ComputeRefused(403, "quotaExceeded", sentence)
        ip, error = self._address_asked(terms.region, body)
        before = self._vms.get(id)
        self._vms[id] = Vm(
            number=self.book.number(),
            name=name,
            zone=zone,
            resource=body,
            terms=terms,
            disk_gb=disk_gb,
            ip=ip,
            created_at=now,
            since=now,
            price_factor=self.price_factor,
            bill=before.bill if before else Bill(),
        )
        work = self.book.begin(f"zones/{zone}", "insert", f"instances/{name}", now, error=error, request_id=request_id)
        if self.creates_answer_500:
            raise ComputeRefused(500, "backendError", "Internal error. Please try again or contact Google Support.")
        return work

    def start(self, id: str, now: datetime) -> dict[str, Any]:
        vm = self.vm(id)
        if vm.status == "TERMINATED":
            vm.become("PROVISIONING", now)
        elif vm.status != "RUNNING":
            raise self._not_ready(id)
        return self.book.begin(f"zones/{vm.zone}", "start", f"instances/{vm.name}", now)

    def stop(self, id: str, now: datetime) -> dict[str, Any]:
        vm = self.vm(id)
        if vm.status == "RUNNING":
            vm.become("STOPPING", now)
        elif vm.status != "TERMINATED":
            raise self._not_ready(id)
        return self.book.begin(f"zones/{vm.zone}", "stop", f"instances/{vm.name}", now)

    def detach(self, id: str, access: str | None, now: datetime) -> dict[str, Any]:
        vm = self.vm(id)
        if access != "External NAT" or not vm.ip:
            raise ComputeRefused(400, "invalid", f"Invalid value for field 'accessConfig': '{access}'. Does not exist.")
        return self.book.begin(f"zones/{vm.zone}", "deleteAccessConfig", f"instances/{vm.name}", now)

    def delete(self, id: str, now: datetime) -> dict[str, Any]:
        vm = self.vm(id)
        if self.deletes_fail > 0:
            self.deletes_fail -= 1
            raise ComputeRefused(500, "backendError", "Internal error. Please try again or contact Google Support.")
        if vm.status != "TERMINATED":
            vm.become("STOPPING", now)
        return self.book.begin(f"zones/{vm.zone}", "delete", f"instances/{vm.name}", now)

    def vm(self, id: str) -> Vm:
        vm = self._vms.get(id)
        if vm is None or not vm.listed:
            raise ComputeRefused(404, "notFound", f"The resource '{self._path(id)}' was not found")
        return vm

    def vm_shown(self, vm: Vm) -> dict[str, Any]:
        return vm.shown(self.project, vm.ip if vm.is_up or self._reserved_by(vm) else "")

    def _path(self, id: str) -> str:
        zone, _, name = id.partition("/")
        return f"projects/{self.project}/zones/{zone}/instances/{name}"

    def _not_ready(self, id: str) -> ComputeRefused:
        return ComputeRefused(400, "resourceNotReady", f"The resource '{self._path(id)}' is not ready")

    def _address_asked(self, region: str, body: dict[str, Any]) -> tuple[str, Failure | None]:
        """The machine's IP, and the error with which its operation ends because another machine has it."""
        access = ((body.get("networkInterfaces") or [{}])[0].get("accessConfigs") or [{}])[0]
        ip = access.get("natIP")
        if not ip:
            return self._draw_ip(67), None
        if not any(a.listed and a.ip == ip and a.region == region for a in self._addresses.values()):
            sentence = f"Invalid value for field 'natIP': '{ip}'. The specified external IP address was not found"
            raise ComputeRefused(400, "invalid", f"{sentence} in region '{region}'.")
        if any(vm.listed and vm.ip == ip for vm in self._vms.values()):
            return ip, ("IP_IN_USE_BY_ANOTHER_RESOURCE", f"IP '{ip}' is already being used by another resource.", 400)
        return ip, None

    # --- addresses

    def reserve(self, region: str, name: str, request_id: str | None, now: datetime) -> dict[str, Any]:
        if known := self.book.known(request_id):
            return known
        if region not in regions():
            raise ComputeRefused(400, "invalid", f"Invalid value for field 'region': '{region}'. Unknown region.")
        id = f"{region}/{name}"
        path = f"projects/{self.project}/regions/{region}/addresses/{name}"
        if id in self._addresses and self._addresses[id].listed:
            raise ComputeRefused(409, "alreadyExists", f"The resource '{path}' already exists")
        held = sum(address.listed for address in self._addresses.values())
        if self.quota_addresses is not None and held >= self.quota_addresses:
            sentence = f"Quota 'STATIC_ADDRESSES' exceeded.  Limit: {self.quota_addresses}.0 in region {region}."
            raise ComputeRefused(403, "quotaExceeded", sentence)
        bill = before.bill if (before := self._addresses.get(id)) else Bill()
        self._addresses[id] = Reserved(self.book.number(), name, region, self._draw_ip(66), now, bill=bill)
        return self.book.begin(f"regions/{region}", "insert", f"addresses/{name}", now, request_id=request_id)

    def release(self, region: str, name: str, now: datetime) -> dict[str, Any]:
        address = self.address(region, name)
        if holder := self._holder(address):
            sentence = f"The address resource '{name}' is already being used by '{self._path(holder.id)}'"
            raise ComputeRefused(400, "resourceInUseByAnotherResource", sentence)
        return self.book.begin(f"regions/{region}", "delete", f"addresses/{address.name}", now)

    def address(self, region: str, name: str) -> Reserved:
        address = self._addresses.get(f"{region}/{name}")
        if address is None or not address.listed:
            path = f"projects/{self.project}/regions/{region}/addresses/{name}"
            raise ComputeRefused(404, "notFound", f"The resource '{path}' was not found")
        return address

    def address_shown(self, address: Reserved) -> dict[str, Any]:
        return address.shown(self.project, self._holder(address))

    def addresses(self) -> list[Reserved]:
        return [address for address in self._addresses.values() if address.listed]

    def _holder(self, address: Reserved) -> Vm | None:
        return next((vm for vm in self._vms.values() if vm.listed and vm.ip == address.ip), None)

    def _reserved_by(self, vm: Vm) -> bool:
        return any(address.listed and address.ip == vm.ip for address in self._addresses.values())

    def _draw_ip(self, net: int) -> str:
        """A loopback address of its own, so that what stands in the machine can be reached on this computer."""
        taken = {thing.ip for thing in self._things()}
        while (ip := f"127.{net}.{self._rng.randrange(256)}.{self._rng.randrange(1, 255)}") in taken:
            continue
        return ip

    # --- time

    def tick(self, now: datetime) -> None:
        """Bill what has passed, then end what is due."""
        self._accrue(now)
        self.book.end_due(now, self._finish)
        for vm in self.contracts():
            if vm.status == "PROVISIONING" and (now - vm.since).total_seconds() >= self.book.operation_s * 0.3:
                vm.status = "STAGING"
            if vm.status_message == "preempted" and vm.status == "STOPPING" and now - vm.since >= PREEMPTION_NOTICE:
                self._halt(vm, now)

    def _finish(self, work: Work, now: datetime) -> None:
        noun, _, name = work.target.partition("/")
        place = work.scope.partition("/")[2]
        if noun == "addresses":
            self._finish_address(work, self._addresses[f"{place}/{name}"], now)
        elif (vm := self._vms[f"{place}/{name}"]).listed:
            self._finish_vm(work, vm, now)

    def _finish_address(self, work: Work, address: Reserved, now: datetime) -> None:
        if work.error is None:
            address.status = "RESERVED"
        if (work.kind == "delete") == (work.error is None):
            address.ended_at = now  # deleted, or never made

    def _finish_vm(self, work: Work, vm: Vm, now: datetime) -> None:
        begins = work.kind in ("insert", "start") and vm.status in ("PROVISIONING", "STAGING")
        if begins and work.error is None and now < self._stockouts.get(vm.zone, now):
            code, message, status = NO_ROOM
            work.error = (code, message.format(zone=vm.zone), status)
        if begins and work.error is None:
            vm.become("RUNNING", now)
            env, script = run_startup(vm.resource)
            self._effects.append(Effect("start", vm.id, vm.label, env, script, vm.hardware()))
        elif begins and work.kind == "start":
            vm.become("TERMINATED", now)
        elif begins:
            vm.ended_at = now  # it never was, and its disk neither
        elif work.kind == "stop" and work.error is None:
            self._halt(vm, now)
        elif work.kind == "deleteAccessConfig" and work.error is None:
            vm.ip = ""
        elif work.kind == "delete" and work.error is None:
            self._vanish(vm, now)

    def _halt(self, vm: Vm, now: datetime) -> None:
        """Its processes end; disk and reserved address are kept and bill on."""
        if vm.is_up:
            self._effects.append(Effect("stop", vm.id, vm.label))
        vm.halted(now)
        vm.become("TERMINATED", now, vm.status_message)

    def _vanish(self, vm: Vm, now: datetime) -> None:
        vm.halted(now)
        vm.ended_at = now
        self._effects.append(Effect("vanish", vm.id, vm.label))

    def _accrue(self, now: datetime) -> None:
        since, self._accrued_at = self._accrued_at or now, now
        if since >= now:
            return
        for vm in self.contracts():
            vm.accrue(since, now, has_reserved=self._reserved_by(vm))
        for address in self.addresses():
            if self._holder(address) is None:
                address.bill.run("address", ADDRESS_USD_PER_HOUR["unused"], since, now)

    def _things(self) -> list[Vm | Reserved]:
        return [*self._vms.values(), *self._addresses.values()]

    def drain(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- looking

    def contracts(self) -> list[Vm]:
        return [vm for vm in self._vms.values() if vm.listed]

    def all_contracts(self) -> list[Vm]:
        return list(self._vms.values())

    def contract_of(self, label: str) -> str | None:
        return next((vm.id for vm in self.contracts() if vm.label == label), None)

    def billed(self, id: str, now: datetime) -> dict[str, Decimal]:
        self._accrue(now)
        return self._vms[id].bill.totals()

    def charges(self, now: datetime) -> dict[str, dict[str, Decimal]]:
        """The whole bill: label of a machine, or name of an address while no machine held it -> kind -> USD."""
        self._accrue(now)
        found: dict[str, dict[str, Decimal]] = {}
        for thing in self._things():
            kinds = found.setdefault(thing.name, {})
            for kind, usd in thing.bill.totals().items():
                kinds[kind] = kinds.get(kind, Decimal(0)) + usd
        return {name: kinds for name, kinds in found.items() if kinds}

    # --- faults

    def preempt(self, label: str, now: datetime) -> None:
        """Google takes a Spot machine back: half a minute's notice, then it stands stopped, its disk kept."""
        self.tick(now)
        vm = self._vms[self.contract_of(label) or label]
        if not vm.is_spot or vm.status != "RUNNING":
            return
        vm.become("STOPPING", now, "preempted")
        self.book.note_preemption(f"zones/{vm.zone}", f"instances/{vm.name}", now)

    def stockout(self, zone: str, until: datetime) -> None:
        """Until then no machine begins in the zone: the call is answered with success, its operation fails."""
        self._stockouts[zone] = until

    def quota(self, machines: int | None) -> None:
        """So many machines may exist at once: refused at once."""
        self.quota_machines = machines

    def slow(self, seconds: float) -> None:
        """So long takes every operation that begins from now on."""
        self.book.operation_s = seconds

    def shut_down(self, id: str, now: datetime) -> None:
        """The machine switches itself off from within."""
        self.tick(now)
        if self._vms[id].status == "RUNNING":
            self._halt(self._vms[id], now)

    def traffic(self, id: str, up_bytes: int, down_bytes: int, now: datetime) -> None:
        """Traffic is on Google's bill, a day late; it is not simulated."""

    def exited(self, id: str, now: datetime) -> None:
        """What ran in the machine is gone; the machine runs, and bills, on: Google does not look inside."""

    def outbid(self, id: str, now: datetime) -> None:
        """The marketplaces' word for a preemption."""
        self.preempt(self._vms[id].label, now)

    def lose(self, id: str, now: datetime) -> None:
        """It disappears without notice, and its disk with it."""
        self.tick(now)
        if self._vms[id].listed:
            self._vanish(self._vms[id], now)

    def address_of(self, label: str) -> str:
        """Where the machine of that label is reached. Raises KeyError."""
        return next(vm.ip for vm in self._vms.values() if vm.label == label and vm.listed)

    # --- the journal

    def to_json(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "key_id": self._key_id,
            "requests_per_minute": self._requests_per_minute,
            "accrued_at": self._accrued_at and self._accrued_at.isoformat(),
            "quotas": [self.quota_machines, self.quota_addresses],
            "stockouts": {zone: until.isoformat() for zone, until in self._stockouts.items()},
            "machines": [vm.to_json() for vm in self._vms.values()],
            "addresses": [address.to_json() for address in self._addresses.values()],
            "book": self.book.to_json(),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any], *, rng: random.Random) -> Self:
        given = {name: plain[name] for name in ("project", "key_id", "requests_per_minute")}
        sim = cls(rng=rng, **given)
        sim.book = Book.from_json(plain["book"], sim.project)
        sim._accrued_at = plain["accrued_at"] and datetime.fromisoformat(plain["accrued_at"])
        sim.quota_machines, sim.quota_addresses = plain["quotas"]
        sim._stockouts = {zone: datetime.fromisoformat(until) for zone, until in plain["stockouts"].items()}
        vms, addresses = map(Vm.from_json, plain["machines"]), map(Reserved.from_json, plain["addresses"])
        sim._vms = {vm.id: vm for vm in vms}
        sim._addresses = {f"{address.region}/{address.name}": address for address in addresses}
        return sim
