"""The hosts of the simulated TensorDock: drawn from a seed, what they have free, and what a create takes of them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from infra.demo.tensordock_machine import Machine

DISK_GB_MIN, DISK_GB_STEP, VCPU_STEP = 100, 50, 2
MODELS: tuple[tuple[str, str, int, float, float], ...] = (
    # v0Name, displayName, hosts, USD/h of the GPU alone from, to
    ("geforcertx3090-pcie-24gb", "NVIDIA GeForce RTX 3090 PCIe 24GB", 3, 0.18, 0.24),
    ("geforcertx4090-pcie-24gb", "NVIDIA GeForce RTX 4090 PCIe 24GB", 5, 0.33, 0.45),
    ("rtxa6000-pcie-48gb", "NVIDIA RTX A6000 PCIe 48GB", 3, 0.40, 0.50),
    ("l40s-pcie-48gb", "NVIDIA L40S PCIe 48GB", 2, 0.75, 0.95),
    ("a100-sxm4-80gb", "NVIDIA A100 SXM4 80GB", 3, 1.30, 1.60),
    ("h100-sxm5-80gb", "NVIDIA H100 SXM5 80GB", 5, 1.90, 2.30),
)
BOOT_S = (9.0, 14.0)
"""A virtual machine takes longer than a container."""
PLACES = (
    ("Chubbuck", "Idaho", "United States"),
    ("Dallas", "Texas", "USA"),
    ("Toronto", "Ontario", "Canada"),
    ("Oslo", "Oslo", "Norway"),
    ("Frankfurt", "Hesse", "Germany"),
)


class BadResources(Exception):
    """A create that asks for what the host has not, or in steps that the vendor does not sell."""


def draw_hosts(rng: random.Random) -> list[dict[str, Any]]:
    """What does not change of each host; prices are decimal strings."""
    hosts: list[dict[str, Any]] = []
    for v0_name, display, count, low, high in MODELS:
        for _ in range(count):
            city, state, country = rng.choice(PLACES)
            hosts.append(
                {
                    "id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                    "location_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                    "v0_name": v0_name,
                    "display": display,
                    "gpus": rng.choice((2, 4, 8)),
                    "vcpus": 128,
                    "ram_gb": 512,
                    "disk_gb": rng.choice((2000, 4000)),
                    "max_vcpus_per_gpu": rng.choice((8, 16)),
                    "max_ram_per_gpu": rng.choice((32, 64)),
                    "ports": [20000 + len(hosts) * 100 + n for n in range(32)],
                    "usd_per_gpu_hour": f"{rng.uniform(low, high):.4f}",
                    "usd_per_vcpu_hour": "0.003",
                    "usd_per_ram_gb_hour": "0.002",
                    "usd_per_disk_gb_hour": "0.00005",
                    "uptime_percentage": round(rng.uniform(97.0, 99.99), 2),
                    "city": city,
                    "state": state,
                    "country": country,
                    "tier": rng.choice((0, 1, 3)),
                    "network_gbps": rng.choice((1, 10)),
                    "boot_s": round(rng.uniform(*BOOT_S), 2),
                    "taken_by_others": False,
                }
            )
    return hosts


def free_resources(host: dict[str, Any], on_it: Sequence[Machine]) -> dict[str, Any]:
    """What nobody holds. A stopped machine keeps its disk and its ports, and gives back the rest."""
    active = [machine for machine in on_it if machine.bills_since]
    gpus = 0 if host["taken_by_others"] else host["gpus"] - sum(machine.gpus for machine in active)
    used_ports = {forward["external_port"] for machine in on_it for forward in machine.ports}
    return {
        "gpus": {host["v0_name"]: gpus},
        "vcpus": host["vcpus"] - sum(machine.vcpus for machine in active),
        "ram_gb": host["ram_gb"] - sum(machine.ram_gb for machine in active),
        "disk_gb": host["disk_gb"] - sum(machine.disk_gb for machine in on_it),
        "ports": [port for port in host["ports"] if port not in used_ports],
    }


def hostnode(host: dict[str, Any], on_it: Sequence[Machine], *, factor: Decimal) -> dict[str, Any]:
    free = free_resources(host, on_it)
    price = float(Decimal(host["usd_per_gpu_hour"]) * factor)
    return {
        "id": host["id"],
        "location_id": host["location_id"],
        "engine": "kvm",
        "uptime_percentage": host["uptime_percentage"],
        "available_resources": {
            "gpus": [
                {"v0Name": name, "availableCount": count, "price_per_hr": price} for name, count in free["gpus"].items()
            ],
            "vcpu_count": free["vcpus"],
            "ram_gb": free["ram_gb"],
            "storage_gb": free["disk_gb"],
            "max_vcpus_per_gpu": host["max_vcpus_per_gpu"],
            "max_ram_per_gpu": host["max_ram_per_gpu"],
            "available_ports": free["ports"],
            "has_public_ip_available": False,
        },
        "pricing": _pricing(host),
        "location": {
            "uuid": host["location_id"],
            "city": host["city"],
            "stateprovince": host["state"],
            "country": host["country"],
            "network_speed_gbps": host["network_gbps"],
            "tier": host["tier"],
        },
    }


def locations(hosts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "id": host["location_id"],
            "city": host["city"],
            "stateprovince": host["state"],
            "country": host["country"],
            "tier": host["tier"],
            "gpus": [
                {
                    "v0Name": host["v0_name"],
                    "displayName": host["display"],
                    "max_count": host["gpus"],
                    "price_per_hr": float(host["usd_per_gpu_hour"]),
                    "resources": {
                        "max_vcpus": host["vcpus"],
                        "max_ram_gb": host["ram_gb"],
                        "max_storage_gb": host["disk_gb"],
                    },
                    "pricing": _pricing(host),
                    "network_features": {
                        "dedicated_ip_available": False,
                        "port_forwarding_available": True,
                        "network_storage_available": False,
                    },
                }
            ],
        }
        for host in hosts
    ]


def reserve(
    host: dict[str, Any],
    on_it: Sequence[Machine],
    attributes: dict[str, Any],
    *,
    factor: Decimal,
    gpu_given: str | None,
) -> dict[str, Any]:
    """The terms of a machine that the host can give; raises `BadResources` and takes nothing."""
    resources, free = attributes.get("resources") or {}, free_resources(host, on_it)
    gpus = resources.get("gpus") or {}
    if len(gpus) != 1:
        raise BadResources("exactly one GPU model is required")
    ((model, wanted),) = gpus.items()
    count, vcpus = int(wanted["count"]), int(resources["vcpu_count"])
    ram_gb, disk_gb = int(resources["ram_gb"]), int(resources["storage_gb"])
    ports = list(attributes.get("port_forwards") or [])
    _check_steps(vcpus, disk_gb)
    if count > free["gpus"].get(model, 0):
        raise BadResources(f"hostnode does not have {count} x {model} available")
    if vcpus > min(free["vcpus"], host["max_vcpus_per_gpu"] * count):
        raise BadResources("not enough vCPUs available")
    if ram_gb > min(free["ram_gb"], host["max_ram_per_gpu"] * count) or disk_gb > free["disk_gb"]:
        raise BadResources("not enough RAM or storage available")
    if any(forward["external_port"] not in free["ports"] for forward in ports):
        raise BadResources("external port is not available")
    return {
        "gpu": model,
        "gpus": count,
        "vcpus": vcpus,
        "ram_gb": ram_gb,
        "disk_gb": disk_gb,
        "compute_usd_per_hour": (
            Decimal(host["usd_per_gpu_hour"]) * factor * count
            + Decimal(host["usd_per_vcpu_hour"]) * vcpus
            + Decimal(host["usd_per_ram_gb_hour"]) * ram_gb
        ),
        "disk_usd_per_hour": Decimal(host["usd_per_disk_gb_hour"]) * disk_gb,
        "ports": ports,
        "gpu_given": gpu_given or model,
    }


def _check_steps(vcpus: int, disk_gb: int) -> None:
    if vcpus < VCPU_STEP or vcpus % VCPU_STEP:
        raise BadResources(f"vcpu_count must be a multiple of {VCPU_STEP}")
    if disk_gb < DISK_GB_MIN or disk_gb % DISK_GB_STEP:
        raise BadResources(f"storage_gb must be at least {DISK_GB_MIN}, in steps of {DISK_GB_STEP}")


def _pricing(host: dict[str, Any]) -> dict[str, float]:
    return {
        "per_vcpu_hr": float(host["usd_per_vcpu_hour"]),
        "per_gb_ram_hr": float(host["usd_per_ram_gb_hour"]),
        "per_gb_storage_hr": float(host["usd_per_disk_gb_hour"]),
    }
