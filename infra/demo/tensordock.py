"""TensorDock's API v2 as a state machine: request in, answer out, `now` passed in. No clock, no thread, no socket.

Faults are attributes (for every machine) and methods (for one): what the vendor was seen to do, and worse.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from infra.demo.tensordock_machine import DELETE_S, STOP_S, Machine, uuid_of
from infra.demo.tensordock_market import BadResources, draw_hosts, free_resources, hostnode, locations, reserve
from infra.demo.wire import Answer, Effect, Request, json_answer, json_body

API = "/api/v2/"
REQUESTS_PER_MINUTE = 100
MINUTE = timedelta(minutes=1)
BALANCE_MIN_USD = Decimal(1)
BALANCE_USD = "250"


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class TensorDockSim:
    """One organisation of the marketplace: `wire.Marketplace`."""

    name = "tensordock"

    def __init__(
        self,
        *,
        rng: random.Random,
        api_key: str,
        requests_per_minute: int | None = REQUESTS_PER_MINUTE,
        hosts: list[dict[str, Any]] | None = None,
    ) -> None:
        self._api_key, self._requests_per_minute = api_key, requests_per_minute
        self._hosts = hosts if hosts is not None else draw_hosts(rng)
        self._machines: dict[str, Machine] = {}
        self._balance = Decimal(BALANCE_USD)
        self._requests: list[datetime] = []
        self._effects: list[Effect] = []
        self.errors_with_200 = False
        """Refusals come with HTTP 200 and the status in the body."""
        self.creates_answer_500 = False
        """The machine is created, and the answer is a 500."""
        self.deletes_fail = 0
        """So many deletes answer 500 and leave the machine, which bills on."""
        self.list_omits: set[str] = set()
        """Ids that the listing lacks although they exist."""
        self.gpu_given: str | None = None
        """The model that a machine really gets (a liar's host)."""
        self.price_factor = Decimal(1)
        """Between the search and the create the host's price is multiplied."""

    # --- the wire

    def handle(self, request: Request, now: datetime) -> Answer:
        self.tick(now)
        try:
            self._admit(request, now)
            status, body = self._route(request)(request, now)
            return json_answer(status, body)
        except (Refused, BadResources) as refused:
            status = refused.status if isinstance(refused, Refused) else 400
            body = {"status": status, "error": str(refused)}
            return json_answer(200 if self.errors_with_200 and status != 429 else status, body)

    def _admit(self, request: Request, now: datetime) -> None:
        if request.authorization != f"Bearer {self._api_key}" and not request.path.endswith("/locations"):
            raise Refused(401, "Unauthorized")
        self._requests = [at for at in self._requests if now - at < MINUTE]
        if self._requests_per_minute is not None and len(self._requests) >= self._requests_per_minute:
            raise Refused(429, "Too many requests")
        self._requests.append(now)

    def _route(self, request: Request) -> Callable[[Request, datetime], tuple[int, Any]]:
        path = request.path.removeprefix(API).strip("/")
        noun, _, rest = path.partition("/")
        id, _, verb = rest.partition("/")
        table: dict[tuple[str, str], Callable[[Request, datetime], tuple[int, Any]]] = {
            ("GET", "locations"): lambda _r, _now: (200, {"data": {"locations": locations(self._hosts)}}),
            ("GET", "hostnodes"): lambda _r, _now: (200, {"data": {"hostnodes": self._nodes()}}),
            ("GET", "hostnodes/*"): lambda _r, _now: (200, {"data": self._node(id)}),
            ("POST", "instances"): self._create,
            ("GET", "instances"): self._list,
            ("GET", "instances/*"): lambda _r, now: (200, self._one(id).detail(now)),
            ("DELETE", "instances/*"): lambda _r, now: self._delete(id, now),
            ("POST", "instances/*/start"): lambda _r, now: self._start(id, now),
            ("POST", "instances/*/stop"): lambda _r, now: self._stop(id, now),
        }
        shape = noun + ("/*" if id else "") + (f"/{verb}" if verb else "")
        if (request.method, shape) not in table:
            raise Refused(404, f"no such endpoint: {request.method} {request.path}")
        return table[request.method, shape]

    # --- search and create

    def _nodes(self) -> list[dict[str, Any]]:
        return [hostnode(host, self._on(host), factor=self.price_factor) for host in self._hosts]

    def _node(self, id: str) -> dict[str, Any]:
        return hostnode(self._host(id), self._on(self._host(id)), factor=self.price_factor)

    def _host(self, id: str) -> dict[str, Any]:
        found = next((host for host in self._hosts if host["id"] == id), None)
        if found is None:
            raise Refused(404, "Hostnode not found")
        return found

    def _on(self, host: dict[str, Any]) -> list[Machine]:
        return [m for m in self._machines.values() if m.listed and m.host["id"] == host["id"]]

    def _create(self, request: Request, now: datetime) -> tuple[int, Any]:
        attributes = ((json_body(request) or {}).get("data") or {}).get("attributes")
        if not isinstance(attributes, dict) or not attributes.get("name") or not attributes.get("image"):
            raise Refused(400, "name and image are required")
        if not attributes.get("ssh_key") and not attributes.get("ssh_key_id"):
            raise Refused(400, "ssh_key is required")
        if self.balance(now) < BALANCE_MIN_USD:
            raise Refused(400, "You need at least $1 in your balance to deploy")
        host = self._host(str(attributes.get("hostnode_id")))
        terms = reserve(host, self._on(host), attributes, factor=self.price_factor, gpu_given=self.gpu_given)
        machine = Machine(
            id=uuid_of(len(self._machines) + 1),
            name=str(attributes["name"]),
            host=host,
            cloud_init=attributes.get("cloud_init") or {},
            created_at=now,
            since=now,
            bills_since=now,
            disk_since=now,
            **terms,
        )
        self._machines[machine.id] = machine
        if self.creates_answer_500:
            raise Refused(500, "Internal server error")
        body = {"type": "virtualmachine", "id": machine.id, "name": machine.name, "status": machine.status}
        return 201, {"data": body}

    # --- instances

    def _list(self, _request: Request, _now: datetime) -> tuple[int, Any]:
        rows = [m.row() for m in self._machines.values() if m.listed and m.id not in self.list_omits]
        return 200, {"data": {"instances": rows}}

    def _one(self, id: str) -> Machine:
        machine = self._machines.get(id)
        if machine is None or not machine.listed:
            raise Refused(404, "Instance not found")
        return machine

    def _delete(self, id: str, now: datetime) -> tuple[int, Any]:
        machine = self._one(id)
        if self.deletes_fail > 0:
            self.deletes_fail -= 1
            raise Refused(500, "Internal server error")
        if machine.status != "deleting":
            machine.stop_billing(now)
            machine.become("deleting", now)
            self._effects.append(Effect("vanish", machine.id, machine.label))
        return 200, {"data": {"type": "success", "message": "deleted"}}

    def _start(self, id: str, now: datetime) -> tuple[int, Any]:
        machine = self._one(id)
        if machine.status not in ("stopped", "stoppeddisassociated"):
            raise Refused(400, f"the instance is {machine.status}")
        if not free_resources(machine.host, [m for m in self._on(machine.host) if m.id != id])["gpus"].get(machine.gpu):
            raise Refused(400, "not enough capacity on the hostnode")
        machine.bills_since = now
        machine.become("starting", now)
        return 200, _changing(machine)

    def _stop(self, id: str, now: datetime) -> tuple[int, Any]:
        machine = self._one(id)
        if machine.status != "running":
            raise Refused(400, f"the instance is {machine.status}")
        self._halt(machine, now, "stopping")
        return 200, _changing(machine)

    def _halt(self, machine: Machine, now: datetime, status: str) -> None:
        """The GPU is given back, the disk goes on billing."""
        machine.accrue(now)
        machine.bills_since = None
        machine.become(status, now)
        self._effects.append(Effect("stop", machine.id, machine.label))

    # --- time

    def tick(self, now: datetime) -> None:
        """Boot, stop and delete what is due; without money everything stops."""
        for machine in self._machines.values():
            if machine.listed:
                self._move_on(machine, now)
        if self._machines and self.balance(now) <= 0:
            for machine in self._machines.values():
                if machine.listed and machine.bills_since:
                    self._halt(machine, now, "stopped")

    def _move_on(self, machine: Machine, now: datetime) -> None:
        age_s = (now - machine.since).total_seconds()
        if machine.status in ("queued", "starting") and not machine.stuck:
            if age_s >= machine.host["boot_s"]:
                machine.become("running", now)
                env, onstart = run_cloud_init(machine.cloud_init)
                self._effects.append(Effect("start", machine.id, machine.label, env, onstart, machine.hardware()))
            elif age_s >= machine.host["boot_s"] * 0.3 and machine.status == "queued":
                machine.status = "starting"
        elif machine.status == "stopping" and age_s >= STOP_S:
            machine.become("stopped", now)
        elif machine.status == "deleting" and age_s >= DELETE_S:
            machine.become("deleted", now)

    def drain(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- looking

    def contracts(self) -> list[Machine]:
        return [machine for machine in self._machines.values() if machine.listed]

    def all_contracts(self) -> list[Machine]:
        return list(self._machines.values())

    def contract_of(self, label: str) -> str | None:
        return next((m.id for m in self._machines.values() if m.label == label and m.listed), None)

    def billed(self, id: str, now: datetime) -> dict[str, Decimal]:
        machine = self._machines[id]
        machine.accrue(now)
        return machine.bill.totals()

    def balance(self, now: datetime) -> Decimal:
        spent = sum((sum(self.billed(id, now).values(), Decimal(0)) for id in self._machines), Decimal(0))
        return self._balance - spent

    # --- faults

    def traffic(self, id: str, up_bytes: int, down_bytes: int, now: datetime) -> None:
        """Bandwidth is free here."""

    def exited(self, id: str, now: datetime) -> None:
        """What ran in the machine is gone; the machine itself runs, and bills, on: the vendor does not look inside."""

    def outbid(self, id: str, now: datetime) -> None:
        """The host takes its GPU back."""
        self._halt(self._machines[id], now, "stoppeddisassociated")

    def lose(self, id: str, now: datetime) -> None:
        machine = self._machines[id]
        machine.stop_billing(now)
        machine.become("deleted", now)
        self._effects.append(Effect("vanish", machine.id, machine.label))

    def stuck(self, id: str) -> None:
        """It stays queued for ever, and bills."""
        self._machines[id].stuck = True

    def fail(self, id: str, now: datetime) -> None:
        """It ends in the state `error`, and bills."""
        self._machines[id].become("error", now)

    def offline(self, id: str, now: datetime) -> None:
        """The host is lost: nothing runs any more, and the vendor lists, and bills, it as before."""
        self._machines[id].accrue(now)
        self._effects.append(Effect("stop", id, self._machines[id].label))

    def take_hosts(self) -> None:
        """Somebody rents every host between our search and our create."""
        for host in self._hosts:
            host["taken_by_others"] = True

    def set_credit(self, usd: str) -> None:
        self._balance = Decimal(usd)

    # --- the journal

    def to_json(self) -> dict[str, Any]:
        return {
            "api_key": self._api_key,
            "requests_per_minute": self._requests_per_minute,
            "hosts": self._hosts,
            "machines": [machine.to_json() for machine in self._machines.values()],
            "balance": str(self._balance),
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any], *, rng: random.Random) -> Self:
        sim = cls(
            rng=rng,
            api_key=plain["api_key"],
            requests_per_minute=plain["requests_per_minute"],
            hosts=plain["hosts"],
        )
        sim._machines = {machine["id"]: Machine.from_json(machine) for machine in plain["machines"]}
        sim._balance = Decimal(plain["balance"])
        return sim


def _changing(machine: Machine) -> dict[str, Any]:
    attributes = {"status": machine.status}
    return {"data": {"type": "virtualmachine", "id": machine.id, "attributes": attributes}}


def run_cloud_init(cloud_init: dict[str, Any]) -> tuple[dict[str, str], str]:
    """What the virtual machine's first boot comes to: the environment it exports and the script it starts.

    A start that its own `runcmd` would not find on the disk starts nothing.
    """
    files = {file["path"]: file["content"] for file in cloud_init.get("write_files", [])}
    env: dict[str, str] = {}
    script = "exit 127\n"
    for command in cloud_init.get("runcmd", []):
        words = shlex.split(command)
        for place, word in enumerate(words[:-1]):
            if word == ".":
                env |= _exports(files.get(words[place + 1], ""))
            if word == "sh":
                script = files.get(words[place + 1], script)
    return env, script


def _exports(text: str) -> dict[str, str]:
    """`export NAME='value'` lines as a shell reads them."""
    pairs = [word.partition("=") for word in shlex.split(text) if "=" in word]
    return {name: value for name, _, value in pairs}
