"""TensorDock over HTTPS (API v2, on demand, whole virtual machines): the vendor's words and units stop here.

Nothing is ever retried. A destroy is only asked for: the vendor has answered 500 to a delete and left a machine that
bills, so the caller asks again until a listing lacks it.
"""

from __future__ import annotations

import json
import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import httpx

from common.domain.offer import HOURS_PER_MONTH, Offer, Survey, Wanted, exact_price, exact_rate
from common.domain.pacing import Limit, Limits
from common.domain.region import country_of
from common.errors import MarketKeyRefused, MarketRefused, MarketSilent, MarketUnknown, NoCredit, OfferGone, Throttled
from common.ports import Charge, Launch, Listed, MachineStatus, Told, untold

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
DEFAULT_RETRY_AFTER_S = 5.0
VM_IMAGE = "ubuntu2404"
FOLDER = "/opt/dumont"
"""Of the start-up script and its environment on the virtual machine."""
EVERY_BOOT = "/var/lib/cloud/scripts/per-boot/dumont"
"""What lies there is run at every boot, before `runcmd`, which is run at the first one alone."""
SSH_PORT = 22

DISK_GB_MIN, DISK_GB_STEP = 100, 50
VCPUS_PER_GPU, VCPU_STEP = 8, 2
RAM_GB_PER_GPU = 32
RAM_GB_STEPS = (2, 4, 6, 8, 10, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 512)
"""The vendor's limits, as public clients of its API state them; per GPU our own choice."""

_ONE = Limit("all", interval_s=1.0, burst=40)
LIMITS: Limits = {
    "search": _ONE,
    "create": replace(_ONE, cost=2),  # the host is asked once more before
    "list": _ONE,
    "get": _ONE,
    "destroy": _ONE,
}
"""100 requests a minute for the whole organisation, in any minute."""

NOBODYS_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEgC+HWdqQn2SnyPLoAaQbfzGtlQ/XkoJt4Q4446xAbf nobody"
"""The vendor demands an ssh key, and its image lets that key in as another user than root. Access is granted by the
start-up script alone, on every marketplace alike, so it gets a key that nobody holds: the 32 bytes of the public key
are SHA-256("dumont: nobody holds this key 4"), the first of the series that is a point of the curve."""

V0_NAMES: Mapping[str, tuple[str, ...]] = {
    "RTX 3090": ("geforcertx3090-pcie-24gb",),
    "RTX 3090 Ti": ("geforcertx3090ti-pcie-24gb",),
    "RTX 4080": ("geforcertx4080-pcie-16gb",),
    "RTX 4090": ("geforcertx4090-pcie-24gb",),
    "RTX 5090": ("geforcertx5090-pcie-32gb",),
    "RTX A4000": ("rtxa4000-pcie-16gb",),
    "RTX A5000": ("rtxa5000-pcie-24gb",),
    "RTX A6000": ("rtxa6000-pcie-48gb",),
    "RTX 6000Ada": ("rtx6000ada-pcie-48gb",),
    "A40": ("a40-pcie-48gb",),
    "L4": ("l4-pcie-24gb",),
    "L40": ("l40-pcie-48gb",),
    "L40S": ("l40s-pcie-48gb",),
    "Tesla V100": ("v100-sxm2-16gb", "v100-sxm2-32gb"),
    "A100 PCIE": ("a100-pcie-80gb", "a100-pcie-40gb"),
    "A100 SXM4": ("a100-sxm4-80gb",),
    "H100 PCIE": ("h100-pcie-80gb",),
    "H100 SXM": ("h100-sxm5-80gb",),
}
"""Our name of a model -> the vendor's `v0Name`s."""

STATUSES: Mapping[str, MachineStatus] = {
    "queued": "starting",
    "starting": "starting",
    "running": "running",
    "stopping": "stopped",
    "stopped": "stopped",
    "stoppeddisassociated": "stopped",  # the host took its GPU back
    "error": "offline",
}
GONE = "deleted"
GATEWAY_WORDS = ("endpoint", "route", "page not found")
"""Of a 404 that says nothing about the machine: something in front of the API does not know the call."""
NO_CREDIT_WORDS = ("balance", "need at least", "insufficient funds")
NO_CAPACITY_WORDS = ("capacity", "available", "unavailable", "out of stock", "not enough")
Json = dict[str, Any]
_EXACT = json.JSONDecoder(parse_float=Decimal)


class TensorDock:
    """`ports.Market` on one TensorDock organisation."""

    name = "tensordock"
    limits: Limits = LIMITS

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = "https://dashboard.tensordock.com",
        transport: httpx.BaseTransport | None = None,
        verify: ssl.SSLContext | bool = True,
        told: Told = untold,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}", "Accept": "application/json"}
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=TIMEOUT, transport=transport, verify=verify
        )
        self._told = told

    def close(self) -> None:
        self._http.close()

    def search(self, wanted: Wanted) -> list[Offer]:
        """One offer per host that has the GPUs free. A virtual machine runs no container image of the user's."""
        return [] if wanted.image_matters else [*self._offered(wanted)][: wanted.limit]

    def survey(self, gpu: str) -> Survey:
        """One GPU of each host: the vendor sells any number of them at the same price each."""
        wanted = Wanted(gpu=gpu, disk_gb=DISK_GB_MIN, limit=512)
        return Survey(offers=tuple(self._offered(wanted)), is_whole=True)

    def create(self, offer: Offer, launch: Launch) -> str:
        """The host is asked once more what it has and costs: a price above the cap is never created."""
        port = self._checked_port(offer, launch)
        _, _, v0_name = offer.offer_id.partition("/")
        attributes = {
            "name": launch.label,
            "type": "virtualmachine",
            "image": VM_IMAGE,
            "hostnode_id": offer.machine_id,
            "resources": {
                "vcpu_count": int(offer.vcpus),
                "ram_gb": int(offer.ram_gb),
                "storage_gb": offer.created_disk_gb(launch.disk_gb),
                "gpus": {v0_name: {"count": offer.num_gpus}},
            },
            "port_forwards": [{"internal_port": SSH_PORT, "external_port": port}],
            "ssh_key": NOBODYS_KEY,
            "cloud_init": cloud_init(launch),
        }
        body = {"data": {"type": "virtualmachine", "attributes": attributes}}
        try:
            answer = self._call("POST", "/instances", body=body)
        except MarketRefused as refused:
            raise _creates_refusal(refused) from refused
        made = _flat(answer)
        if not made.get("id"):
            raise MarketUnknown("tensordock accepted the create but named no instance")
        return str(made["id"])

    def list(self) -> Sequence[Listed]:
        """Names and states only (`in_full` is False): the vendor tells prices and addresses one by one."""
        answer = self._call("GET", "/instances")
        rows = _rows(answer, "instances")
        _refuse_a_part(answer, len(rows))
        return [_listed(row, in_full=False) for row in map(_flat, rows) if _status(row) != GONE]

    def get(self, provider_id: str) -> Listed | None:
        try:
            row = _flat(self._call("GET", f"/instances/{provider_id}"))
        except _Missing:
            return None
        return _listed(row, in_full=True) if _status(row) != GONE else None

    def destroy(self, provider_id: str) -> bool:
        try:
            self._call("DELETE", f"/instances/{provider_id}")
        except _Missing:
            return False
        return True

    def credit_usd(self) -> str | None:
        """The API has no call for the balance: a create that is refused for it is the only word."""
        return None

    def charges(self, since: datetime, until: datetime) -> Sequence[Charge] | None:  # noqa: ARG002 - the port's
        """The API publishes no bill, and an hourly rate times a time is none."""
        return None

    def _offered(self, wanted: Wanted) -> Sequence[Offer]:
        """What fits, cheapest first; a model that the vendor never had is not asked for."""
        if wanted.gpu not in V0_NAMES:
            return []
        nodes = _rows(self._call("GET", "/hostnodes"), "hostnodes")
        offers = [offer for node in nodes for name in V0_NAMES[wanted.gpu] for offer in _offers(node, name, wanted)]
        fitting = [offer for offer in offers if _fits(offer, wanted)]
        return sorted(fitting, key=lambda offer: offer.usd_per_hour(wanted.disk_gb))

    def _checked_port(self, offer: Offer, launch: Launch) -> int:
        """A free external port of the host, if it still has the offer at a price under the cap; else `OfferGone`."""
        host, _, v0_name = offer.offer_id.partition("/")
        try:
            node = _flat(self._call("GET", f"/hostnodes/{host}"))
        except _Missing:
            raise OfferGone(f"tensordock's host {host} left the market") from None
        wanted = Wanted(gpu=offer.gpu, num_gpus=offer.num_gpus, disk_gb=launch.disk_gb)
        found = [now for now in _offers(node, v0_name, wanted) if _fits(now, wanted)]
        if not found or (found[0].vcpus, found[0].ram_gb) != (offer.vcpus, offer.ram_gb):
            raise OfferGone(f"tensordock's host {host} no longer has {offer.num_gpus} x {offer.gpu} free")
        price = found[0].usd_per_hour(launch.disk_gb)
        if launch.max_usd_per_hour is not None and price > Decimal(launch.max_usd_per_hour):
            raise OfferGone(f"the price rose to {price:.4f} USD/h, above {launch.max_usd_per_hour}")
        return int(node["available_resources"]["available_ports"][0])

    def _call(self, method: str, path: str, *, body: Json | None = None) -> Json:
        """The parsed answer of a call that worked; every other outcome is one of the errors of `ports.Market`.

        A refusal may come as an HTTP status or, with 200, as `error` and `status` in the body.
        """
        try:
            answer = self._http.request(method, f"/api/v2{path}", json=body)
        except httpx.HTTPError as error:
            unknown = MarketSilent if isinstance(error, httpx.TimeoutException) else MarketUnknown
            raise unknown(f"tensordock did not answer {method} {path}: {type(error).__name__}") from error
        if answer.status_code == 429:
            raise Throttled("tensordock: too many requests", _retry_after_s(answer))
        parsed = _parsed(answer)
        if parsed is None:
            raise MarketUnknown(f"tensordock answered {answer.status_code} to {method} {path} without information")
        status = _stated_status(answer.status_code, parsed)
        if 400 <= status < 500:
            raise _refusal(status, parsed)
        if not 200 <= status < 300:
            raise MarketUnknown(f"tensordock answered {status} to {method} {path}")
        self._told(method, path, parsed)
        return parsed


class _Missing(MarketRefused):
    """404: there is no such thing."""


def cloud_init(launch: Launch) -> Json:
    """The start-up script in a virtual machine: the same script and environment as in a container, run as root.

    A machine that booted before has its token: whoever reboots it finds the agent back, and the work with it.
    """
    env = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in launch.env.items())
    start = f". {FOLDER}/env && HOME=/root nohup sh {FOLDER}/onstart.sh >{FOLDER}/log 2>&1 &"
    again = f"#!/bin/sh\n[ ! -s {FOLDER}/token ] || {{ {start} }}\n"
    return {
        "package_update": False,
        "package_upgrade": False,
        "write_files": [
            {"path": f"{FOLDER}/env", "permissions": "0600", "content": env},
            {"path": f"{FOLDER}/onstart.sh", "permissions": "0700", "content": launch.start_script},
            {"path": EVERY_BOOT, "permissions": "0700", "content": again},
        ],
        "runcmd": [start],
    }


def _parsed(answer: httpx.Response) -> Json | None:
    """The body as an object with exact numbers, or None when it is no such thing."""
    try:
        parsed = _EXACT.decode(answer.content.decode())
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _stated_status(status: int, parsed: Json) -> int:
    """The HTTP status, or what the body says of itself; a body with an error and no status is a plain refusal."""
    if status >= 400:
        return status
    stated = parsed.get("status")
    if isinstance(stated, int) and stated >= 400:
        return stated
    return 400 if parsed.get("error") or parsed.get("errors") or parsed.get("success") is False else status


def _retry_after_s(answer: httpx.Response) -> float:
    header = answer.headers.get("retry-after", "")
    return float(header) if header.isdigit() else DEFAULT_RETRY_AFTER_S


def _refusal(status: int, parsed: Json) -> Exception:
    text = _text(parsed)
    if status in (401, 403):
        return MarketKeyRefused(f"tensordock refuses the key: {text}")
    if status == 404 and any(word in json.dumps(parsed, default=str).lower() for word in GATEWAY_WORDS):
        return MarketUnknown(f"tensordock's gateway knows no such call: {text}")
    return _Missing(text) if status == 404 else MarketRefused(f"{status}: {text}")


def _text(parsed: Json) -> str:
    """The vendor documents no error body: `error`, `errors` or `message`, a text or a structure."""
    said = parsed.get("error") or parsed.get("errors") or parsed.get("message") or "no reason given"
    return said if isinstance(said, str) else json.dumps(said, default=str)


def _creates_refusal(refused: MarketRefused) -> Exception:
    """A refused create told by its words: the account is empty, the offer is gone, or something else."""
    text = str(refused).lower()
    if any(word in text for word in NO_CREDIT_WORDS):
        return NoCredit(str(refused))
    if isinstance(refused, _Missing) or any(word in text for word in NO_CAPACITY_WORDS):
        return OfferGone(f"the offer was taken: {refused}")
    return refused


def _rows(answer: Json, name: str) -> list[Json]:
    data = answer.get("data")
    rows = data.get(name) if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MarketUnknown(f"tensordock answered without {name}")
    return rows


def _refuse_a_part(answer: Json, count: int) -> None:
    """The vendor documents no pages. A mark of one would mean that this is not the whole listing."""
    data = answer["data"] if isinstance(answer.get("data"), dict) else {}
    for place in (answer, data, answer.get("meta"), answer.get("links")):
        if isinstance(place, dict) and (place.get("next") or place.get("total", count) != count):
            raise MarketUnknown(f"tensordock listed {count} instances and says that there are more")


def _flat(answer: Json) -> Json:
    """An object without its envelopes `data` and `attributes`: the vendor answers in both manners."""
    inner = answer["data"] if isinstance(answer.get("data"), dict) else answer
    attributes = inner.get("attributes")
    return {**inner, **attributes} if isinstance(attributes, dict) else inner


def _offers(node: Json, v0_name: str, wanted: Wanted) -> list[Offer]:
    """What a host has of one model: none or one. A host without a free port or with an unknown rate offers nothing."""
    try:
        free = node["available_resources"]
        gpu = next((gpu for gpu in free["gpus"] if gpu["v0Name"] == v0_name), None)
        if gpu is None or int(gpu["availableCount"]) < wanted.num_gpus or not free["available_ports"]:
            return []
        return [_offer(node, gpu, wanted)]
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return []


def _offer(node: Json, gpu: Json, wanted: Wanted) -> Offer:
    free, pricing, place = node["available_resources"], node["pricing"], node.get("location") or {}
    count = wanted.num_gpus
    vcpus = _vcpus(count, int(free["vcpu_count"]), int(free["max_vcpus_per_gpu"]))
    ram_gb = _ram_gb(count, int(free["ram_gb"]), int(free["max_ram_per_gpu"]))
    slice_usd_per_hour = (
        exact_price(gpu["price_per_hr"]) * count
        + exact_rate(pricing["per_vcpu_hr"]) * vcpus
        + exact_rate(pricing["per_gb_ram_hr"]) * ram_gb
    )
    mbit_s = float(place.get("network_speed_gbps") or 0) * 1000
    return Offer(
        provider="tensordock",
        offer_id=f"{node['id']}/{gpu['v0Name']}",
        machine_id=str(node["id"]),
        gpu=wanted.gpu,
        num_gpus=count,
        gpu_ram_mb=_gpu_ram_mb(gpu["v0Name"]),
        gpu_usd_per_hour=slice_usd_per_hour,
        gpu_bills_from="created",
        storage_usd_per_gb_month=exact_rate(pricing["per_gb_storage_hr"]) * HOURS_PER_MONTH,
        upload_mbit_s=mbit_s,
        download_mbit_s=mbit_s,
        reliability=float(node.get("uptime_percentage") or 0) / 100,
        country=country_of(place.get("country")),
        geolocation=", ".join(str(place[part]) for part in ("city", "stateprovince", "country") if place.get(part)),
        disk_space_gb=float(free["storage_gb"]),
        disk_gb_min=DISK_GB_MIN,
        disk_gb_step=DISK_GB_STEP,
        vcpus=vcpus,
        ram_gb=ram_gb,
    )


def _vcpus(gpus: int, free: int, most_per_gpu: int) -> int:
    most = min(VCPUS_PER_GPU * gpus, most_per_gpu * gpus, free)
    if most < VCPU_STEP:
        raise ValueError("too few CPUs")
    return most - most % VCPU_STEP


def _ram_gb(gpus: int, free: int, most_per_gpu: int) -> int:
    most = min(RAM_GB_PER_GPU * gpus, most_per_gpu * gpus, free)
    return max(step for step in RAM_GB_STEPS if step <= most)


def _gpu_ram_mb(v0_name: str) -> int:
    """`h100-sxm5-80gb` -> 80 GiB in MiB."""
    return int(v0_name.rpartition("-")[2].removesuffix("gb")) * 1024


def _fits(offer: Offer, wanted: Wanted) -> bool:
    cap = wanted.max_usd_per_hour
    return (
        offer.created_disk_gb(wanted.disk_gb) <= offer.disk_space_gb
        and (not wanted.regions or offer.country in wanted.regions)
        and (cap is None or offer.usd_per_hour(wanted.disk_gb) <= cap)
    )


def _status(row: Json) -> str:
    return str(_flat(row).get("status") or "").lower().replace("_", "")


def _listed(row: Json, *, in_full: bool) -> Listed:
    try:
        forwards = row.get("portForwards") or row.get("port_forwards") or []
        port = next((int(f["external_port"]) for f in forwards if int(f["internal_port"]) == SSH_PORT), None)
        address = str(row.get("ipAddress") or row.get("ip_address") or "").strip()
        rate = row.get("rateHourly")
        return Listed(
            provider_id=str(row["id"]),
            label=str(row.get("name") or ""),
            status=STATUSES.get(_status(row), "unknown"),
            ssh_host=address if address and port else None,
            ssh_port=port if address else None,
            usd_per_hour=str(exact_rate(rate)) if rate is not None else None,
            in_full=in_full,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MarketUnknown(f"tensordock listed an instance that does not parse: {error}") from error
