"""Compute Engine beside its machines, as far as a deployment uses it: firewall rules, and each region's quotas."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from common.domain.region import regions
from infra.demo.gcp.compute import ComputeSim
from infra.demo.gcp.compute_api import NAME, PROJECT, ComputeRefused, add_routes
from infra.demo.gcp.sim import Ask, GoogleSim, Slow

FIREWALLS = PROJECT + "/global/firewalls"
URL = "https://www.googleapis.com/compute/v1"
PORTS = re.compile(r"\d+(-\d+)?\Z")
QUOTAS: dict[str, tuple[float, float]] = {
    "CPUS": (24.0, 0.0),
    "PREEMPTIBLE_CPUS": (0.0, 0.0),
    "STATIC_ADDRESSES": (8.0, 0.0),
    "IN_USE_ADDRESSES": (8.0, 0.0),
    "SSD_TOTAL_GB": (500.0, 0.0),
}
"""Metric -> (limit, used) of each region of a project of some age."""


@dataclass
class Change(Slow):
    """An operation in Compute's own form, on one firewall rule."""

    kind: str = ""
    target: str = ""
    project: str = ""

    def shown(self) -> dict[str, Any]:
        path = f"{URL}/projects/{self.project}/global"
        failed = {"error": {"errors": [{"code": "FAILED", "message": self.error["message"]}]}} if self.error else {}
        return {
            "kind": "compute#operation",
            "name": self.name,
            "operationType": self.kind,
            "targetLink": f"{path}/firewalls/{self.target}",
            "status": "DONE" if self.done else "RUNNING",
            "selfLink": f"{path}/operations/{self.name}",
            **failed,
        }


def add_network(sim: GoogleSim) -> None:
    """Knobs: `no_network` = the project has no network named default, `rules_fail` = the sentence with which changes of
    rules end. Table `region quotas` = a region's own."""
    sim.compute = ComputeSim(rng=random.Random(1), project=sim.project)
    _firewalls(sim)
    sim.on("GET", PROJECT + "/regions", lambda ask: _page("region", _regions(sim), ask), api="compute")
    sim.on("GET", PROJECT + "/global/operations/{id}", lambda ask: _operation(sim, ask), api="compute")
    add_routes(sim, sim.compute, interface="compute")


def _firewalls(sim: GoogleSim) -> None:
    rules, api = sim.table("firewalls"), "compute"

    def begin(ask: Ask, kind: str, name: str, finish: Callable[[], Any]) -> dict[str, Any]:
        until = ask.now + timedelta(seconds=sim.operation_s)

        def end(_now: datetime) -> Any:
            if sentence := sim.table("knobs").get("rules_fail"):
                raise ComputeRefused(400, "failed", sentence)
            return finish()

        change = Change(f"operation-{len(sim.operations) + 1}", until, end)
        change.kind, change.target, change.project = kind, name, sim.project
        sim.operations[change.name] = change
        return change.shown()

    def insert(ask: Ask) -> Any:
        row = _valid(sim, ask.body)
        if row["name"] in rules or _under_way(sim, row["name"]):
            path = f"projects/{sim.project}/global/firewalls/{row['name']}"
            raise ComputeRefused(409, "alreadyExists", f"The resource '{path}' already exists")
        return begin(ask, "insert", row["name"], lambda: rules.update({row["name"]: row}))

    def patch(ask: Ask) -> Any:
        name = _here(sim, ask)
        row = _valid(sim, {**rules[name], **ask.body, "name": name})
        if any(row[fixed] != rules[name][fixed] for fixed in ("network", "direction")):
            raise ComputeRefused(400, "invalid", "Invalid value for field 'resource'. Network cannot be changed.")
        return begin(ask, "patch", name, lambda: rules.update({name: row}))

    def delete(ask: Ask) -> Any:
        name = _here(sim, ask)
        return begin(ask, "delete", name, lambda: rules.pop(name, None) and {})

    one = FIREWALLS + "/{name}"
    sim.on("GET", FIREWALLS, lambda ask: _page("firewall", [*rules.values()], ask), api=api)
    sim.on("POST", FIREWALLS, insert, api=api)
    sim.on("GET", one, lambda ask: copy.deepcopy(rules[_named(sim, ask)]), api=api)
    sim.on("PATCH", one, patch, api=api)
    sim.on("DELETE", one, delete, api=api)


def _valid(sim: GoogleSim, body: dict[str, Any]) -> dict[str, Any]:
    """The rule as Google keeps it; refused as Google refuses what is none."""
    defaults = {"priority": 1000, "direction": "INGRESS", "disabled": False}
    row = {**defaults, **{name: value for name, value in body.items() if value != []}}
    if not NAME.match(str(row.get("name", ""))):
        raise ComputeRefused(400, "invalid", f"Invalid value for field 'resource.name': '{row.get('name')}'.")
    if not row.get("allowed") and not row.get("denied"):
        raise ComputeRefused(400, "invalid", "Invalid value for field 'resource.allowed': ''. Must be specified.")
    for port in (port for rule in row.get("allowed", []) for port in rule.get("ports", [])):
        if not isinstance(port, str) or not PORTS.match(port):
            raise ComputeRefused(400, "invalid", f"Invalid value for field 'resource.allowed[0].ports[0]': '{port}'.")
    network = f"projects/{sim.project}/global/networks/default"
    if str(row.get("network", "")).removeprefix(f"{URL}/") != network or "no_network" in sim.table("knobs"):
        raise ComputeRefused(404, "notFound", f"The resource '{row.get('network')}' was not found")
    return row | {"network": f"{URL}/{network}"}


def _named(sim: GoogleSim, ask: Ask) -> str:
    name = ask.names["name"]
    if name not in sim.table("firewalls"):
        path = f"projects/{sim.project}/global/firewalls/{name}"
        raise ComputeRefused(404, "notFound", f"The resource '{path}' was not found")
    return name


def _here(sim: GoogleSim, ask: Ask) -> str:
    """There, and nothing of it is under way."""
    name = _named(sim, ask)
    if _under_way(sim, name):
        path = f"projects/{sim.project}/global/firewalls/{name}"
        raise ComputeRefused(400, "resourceNotReady", f"The resource '{path}' is not ready")
    return name


def _under_way(sim: GoogleSim, name: str) -> bool:
    return any(isinstance(slow, Change) and slow.target == name and not slow.done for slow in sim.operations.values())


def _operation(sim: GoogleSim, ask: Ask) -> dict[str, Any]:
    if ask.names["id"] not in sim.operations:
        path = f"projects/{sim.project}/global/operations/{ask.names['id']}"
        raise ComputeRefused(404, "notFound", f"The resource '{path}' was not found")
    return sim.operations[ask.names["id"]].shown()


def _regions(sim: GoogleSim) -> list[dict[str, Any]]:
    own = sim.table("region quotas")
    return [
        {
            "name": name,
            "status": "UP",
            "quotas": [
                {"metric": metric, "limit": limit, "usage": used}
                for metric, (limit, used) in {**QUOTAS, **own.get(name, {})}.items()
            ],
        }
        for name in regions()
    ]


def _page(noun: str, rows: list[dict[str, Any]], ask: Ask) -> dict[str, Any]:
    """Without rows Google leaves the list out."""
    begin, size = int(ask.query.get("pageToken", 0)), int(ask.query.get("maxResults", 500))
    more = {"nextPageToken": str(begin + size)} if begin + size < len(rows) else {}
    page = copy.deepcopy(rows[begin : begin + size])
    return {"kind": f"compute#{noun}List", **({"items": page} if page else {}), **more}
