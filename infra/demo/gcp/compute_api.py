"""Compute v1's paths, as far as a standby needs them: what each asks of `ComputeSim`, and the form of a refusal."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from common.domain.region import region_of, regions
from common.domain.standby_price import DISK_GB_MIN, MACHINE_TYPES, Terms
from infra.demo.gcp.sim import Ask, Refused, Routes
from infra.demo.wire import Answer, Request, json_answer

if TYPE_CHECKING:
    from infra.demo.gcp.compute import ComputeSim

PROJECT = "/compute/v1/projects/{project}"
ZONE, REGION = PROJECT + "/zones/{zone}", PROJECT + "/regions/{region}"
FILTER = re.compile(r'(name|targetLink) eq "(.*)"\Z')
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?\Z")
STARTS = "# what was asked for starts here\n"


class ComputeRefused(Refused):
    """An answer that is not 2xx, in Compute's form: with the reasons one by one."""

    def answer(self) -> Answer:
        row = {"message": str(self), "domain": "global", "reason": self.code}
        return json_answer(self.status, {"error": {"code": self.status, "message": str(self), "errors": [row]}})


def demand_key(request: Request, key_id: str | None) -> None:
    """The token names the key that signed it; its signature is Google's business."""
    if key_id is None:
        return
    kind, _, token = (request.authorization or "").partition(" ")
    try:
        head = token.partition(".")[0]
        shown = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]
    except (ValueError, KeyError, TypeError):
        shown = None
    if kind != "Bearer" or shown != key_id:
        raise ComputeRefused(401, "authError", "Request had invalid authentication credentials.")


def terms_asked(zone: str, body: dict[str, Any]) -> tuple[Terms, int, str]:
    """(terms, disk in GiB, name) of an insert; refused as Google refuses what it does not sell."""
    region = regions().get(region_of(zone))
    if region is None or zone not in region.zones:
        raise ComputeRefused(400, "invalid", f"Invalid value for field 'zone': '{zone}'. Unknown zone.")
    name = str(body.get("name", ""))
    if not NAME.match(name):
        raise ComputeRefused(400, "invalid", f"Invalid value for field 'resource.name': '{name}'.")
    machine_type = str(body.get("machineType", "")).rpartition("/")[2]
    if machine_type not in MACHINE_TYPES:
        raise ComputeRefused(400, "invalid", f"Invalid value for field 'resource.machineType': '{machine_type}'.")
    disk: dict[str, Any] = {}
    for row in body.get("disks", []):
        disk = row.get("initializeParams", {}) if row.get("boot") else disk
    disk_gb, kind = int(disk.get("diskSizeGb", 0)), str(disk.get("diskType", "")).rpartition("/")[2]
    if disk_gb < DISK_GB_MIN or kind not in ("pd-standard", "pd-balanced") or not disk.get("sourceImage"):
        raise ComputeRefused(400, "invalid", "Invalid value for field 'resource.disks[0].initializeParams'.")
    if not body.get("networkInterfaces"):
        raise ComputeRefused(400, "invalid", "At least one network interface is required.")
    is_spot = body.get("scheduling", {}).get("provisioningModel") == "SPOT"
    model: Any = "spot" if is_spot else "standard"
    disk_type: Any = kind
    return Terms(zone=zone, machine_type=machine_type, model=model, disk_type=disk_type), disk_gb, name


def run_startup(resource: dict[str, Any]) -> tuple[dict[str, str], str]:
    """What the start-up script in the metadata comes to: the environment it exports and the script that follows."""
    items = resource.get("metadata", {}).get("items", [])
    text = next((item["value"] for item in items if item["key"] == "startup-script"), "exit 0\n")
    head, found, script = text.partition(STARTS)
    if not found:
        return {}, text
    words = [word.partition("=") for word in shlex.split(head, comments=True)]
    return {name: value for name, mark, value in words if mark and name.isidentifier()}, script


class Api(Routes):
    def answer(self, request: Request, body: dict[str, Any] | None, now: datetime) -> Any:
        """What the path's handler says; raises `Refused`."""
        found = self.find(request.method, request.path)
        if found is None:
            raise ComputeRefused(404, "notFound", f"no such method: {request.method} {request.path}")
        _, handler, names = found
        if body is None:
            raise ComputeRefused(400, "parseError", "Parse Error")
        return handler(Ask(request.method, names, body, request.query, request.body, now))


def add_routes(api: Routes, sim: ComputeSim, *, interface: str | None = None) -> None:
    """`interface` = the one of Google's that must be on, in a project that switches them on one by one."""

    def on(method: str, path: str, handler: Callable[[Ask], Any]) -> None:
        def of_this_project(ask: Ask) -> Any:
            if ask.names["project"] != sim.project:
                raise ComputeRefused(404, "notFound", f"The resource 'projects/{ask.names['project']}' was not found")
            return handler(ask)

        api.on(method, path, of_this_project, api=interface)

    def id(ask: Ask) -> str:
        return f"{ask.names['zone']}/{ask.names['name']}"

    machine, address = ZONE + "/instances/{name}", REGION + "/addresses/{name}"
    on("POST", ZONE + "/instances", lambda a: sim.insert(a.names["zone"], a.body, a.query.get("requestId"), a.now))
    on("GET", ZONE + "/instances", lambda a: _list(sim, a, "instance", _machines(sim, a.names["zone"])))
    on("GET", machine, lambda a: sim.vm_shown(sim.vm(id(a))))
    on("DELETE", machine, lambda a: sim.delete(id(a), a.now))
    on("POST", machine + "/start", lambda a: sim.start(id(a), a.now))
    on("POST", machine + "/deleteAccessConfig", lambda a: sim.detach(id(a), a.query.get("accessConfig"), a.now))
    on("POST", machine + "/stop", lambda a: sim.stop(id(a), a.now))
    on("GET", PROJECT + "/aggregated/instances", lambda a: _aggregated(sim, a, "instance", _machines(sim)))
    on(
        "POST",
        REGION + "/addresses",
        lambda a: sim.reserve(a.names["region"], str(a.body.get("name", "")), a.query.get("requestId"), a.now),
    )
    on("GET", REGION + "/addresses", lambda a: _list(sim, a, "address", _addresses(sim, a.names["region"])))
    on("GET", address, lambda a: sim.address_shown(sim.address(a.names["region"], a.names["name"])))
    on("DELETE", address, lambda a: sim.release(a.names["region"], a.names["name"], a.now))
    on("GET", PROJECT + "/aggregated/addresses", lambda a: _aggregated(sim, a, "address", _addresses(sim)))
    for scope in ("zones", "regions"):
        _add_operations(sim, scope, on)


def _add_operations(sim: ComputeSim, scope: str, on: Callable[[str, str, Callable[[Ask], Any]], None]) -> None:
    path = PROJECT + f"/{scope}/{{place}}/operations"
    on("GET", path, lambda ask: _list(sim, ask, "operation", _work(sim, scope, ask)))
    on("GET", path + "/{name}", lambda ask: _one(sim, scope, ask))
    # the real one answers after two minutes or when it is done; without a clock nothing can be waited for
    on("POST", path + "/{name}/wait", lambda ask: _one(sim, scope, ask))


def _machines(sim: ComputeSim, zone: str | None = None) -> list[dict[str, Any]]:
    """Of one zone, or of all that answer."""
    rows = [vm for vm in sim.contracts() if vm.name not in sim.list_omits and zone in (None, vm.zone)]
    return [sim.vm_shown(vm) for vm in rows]


def _addresses(sim: ComputeSim, region: str | None = None) -> list[dict[str, Any]]:
    rows = [a for a in sim.addresses() if a.name not in sim.list_omits and region in (None, a.region)]
    return [sim.address_shown(address) for address in rows]


def _work(sim: ComputeSim, scope: str, ask: Ask) -> list[dict[str, Any]]:
    return [work.shown(sim.project) for work in sim.book if work.scope == f"{scope}/{ask.names['place']}"]


def _one(sim: ComputeSim, scope: str, ask: Ask) -> dict[str, Any]:
    path = f"{scope}/{ask.names['place']}/operations/{ask.names['name']}"
    for work in sim.book:
        if f"{work.scope}/operations/{work.name}" == path:
            return work.shown(sim.project)
    raise ComputeRefused(404, "notFound", f"The resource 'projects/{sim.project}/{path}' was not found")


def _list(sim: ComputeSim, ask: Ask, noun: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    page, more = _page(sim, ask, rows)
    return {"kind": f"compute#{noun}List", "id": ask.query.get("filter", "all"), "items": page, **more}


def _aggregated(sim: ComputeSim, ask: Ask, noun: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By zone or region, those without rows included; one that cannot be reached has a warning in their place."""
    place_kind, plural = ("zone", "instances") if noun == "instance" else ("region", "addresses")
    names = [zone for r in regions().values() for zone in r.zones] if place_kind == "zone" else [*regions()]
    page, more = _page(sim, ask, rows)
    items: dict[str, Any] = {}
    for name in names:
        here = [row for row in page if row[place_kind].rpartition("/")[2] == name]
        code = "UNREACHABLE" if name in sim.unreachable else "NO_RESULTS_ON_PAGE"
        warning = {"warning": {"code": code, "message": f"There are no results for scope '{place_kind}s/{name}'."}}
        items[f"{place_kind}s/{name}"] = {plural: here} if here and name not in sim.unreachable else warning
    unreachable = {"unreachables": [f"{place_kind}s/{name}" for name in names if name in sim.unreachable]}
    head = {"kind": f"compute#{noun}AggregatedList", "id": f"projects/{sim.project}/aggregated/{plural}"}
    return {**head, "items": items, **more, **(unreachable if unreachable["unreachables"] else {})}


def _page(sim: ComputeSim, ask: Ask, rows: Sequence[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], dict[str, str]]:
    """The page that is asked for, of the rows that fit the filter."""
    if text := ask.query.get("filter"):
        found = FILTER.match(text)
        if not found:
            raise ComputeRefused(400, "invalid", f"Invalid value for field 'filter': '{text}'. Invalid list filter.")
        rows = [row for row in rows if re.fullmatch(found[2], row[found[1]])]
    begin, size = int(ask.query.get("pageToken", 0)), min(int(ask.query.get("maxResults", 500)), sim.page_rows)
    more = {"nextPageToken": str(begin + size)} if begin + size < len(rows) else {}
    return rows[begin : begin + size], more
