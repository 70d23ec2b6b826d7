"""The simulated market: machines drawn from a seed, and the vendor's search over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

HOURS_PER_MONTH = Decimal(720)
DEFAULT_STORAGE_GB = 5.0
MODELS: tuple[tuple[str, int, int, float, float, str], ...] = (
    # name, VRAM in MB, machines, USD/h from, to, driver
    ("RTX 3090", 24576, 8, 0.12, 0.26, "550.54.14"),
    ("RTX 4090", 24564, 14, 0.24, 0.62, "560.35.03"),
    ("RTX 5090", 32607, 10, 0.32, 0.90, "570.86.15"),
    ("L40S", 46068, 6, 0.60, 1.10, "550.90.07"),
    ("A100 PCIE", 40960, 6, 0.55, 1.20, "550.54.14"),
    ("A100 SXM4", 81920, 8, 1.55, 2.20, "550.54.14"),
    ("H100 SXM", 81559, 12, 1.80, 3.10, "560.35.03"),
)
BOOT_S = (0.6, 2.0)
SLOW, SLOW_BOOT_S = ("H100 SXM",), (3.0, 9.0)
"""Big machines take longer than the create interval, so that a race is one."""
PLACES = ("California, US", "Quebec, CA", "Texas, US", ", US", "Norway, NO", "Sweden, SE", "Tokyo, JP", "Germany, DE")
ALIASES = {
    "cuda_vers": "cuda_max_good",
    "dph": "dph_total",
    "dlperf_usd": "dlperf_per_dphtotal",
    "reliability2": "reliability",
}
PLAIN_KEYS = {"order", "type", "limit", "allocated_storage", "disable_bundling", "select_cols"}
ANY_FIELD = {"verified", "external", "datacenter", "geolocation", "target_reliability"}


HIDDEN = {"boot_s", "boot_message", "wrong_gpu", "small_disk", "slow_net"}
"""What a machine really does; its market does not say so. See `VastSim.tamper`."""


class BadFilter(Exception):
    """A key that is no search key."""


def draw_machines(rng: random.Random) -> list[dict[str, Any]]:
    """What does not change of each machine; prices are decimal strings."""
    machines: list[dict[str, Any]] = []
    for name, ram_mb, count, low, high, driver in MODELS:
        for _ in range(count):
            number = len(machines) + 1
            machines.append(
                {
                    "machine_id": 20000 + number,
                    "host_id": 500 + number // 2,
                    "gpu_name": name,
                    "num_gpus": 1,
                    "gpu_ram": ram_mb,
                    "gpu_total_ram": ram_mb,
                    "gpu_frac": 1.0,
                    "cpu_cores": 64,
                    "cpu_cores_effective": 16.0,
                    "cpu_ram": 128_000,
                    "disk_space": float(rng.choice((500, 1000, 2000))),
                    "disk_bw": float(rng.randint(900, 6000)),
                    "inet_up": float(rng.randint(300, 2000)),
                    "inet_down": float(rng.randint(500, 4000)),
                    "inet_up_cost": f"{rng.choice((0, 0.002, 0.005)):.3f}",
                    "inet_down_cost": f"{rng.choice((0, 0.002, 0.004)):.3f}",
                    "cuda_max_good": rng.choice((12.4, 12.6, 12.8)),
                    "compute_cap": 890,
                    "direct_port_count": 100,
                    "reliability": round(rng.uniform(0.95, 0.999), 4),
                    "dlperf": round(rng.uniform(20, 200), 2),
                    "total_flops": round(rng.uniform(40, 900), 1),
                    "score": round(rng.uniform(100, 900), 2),
                    "verification": "verified",
                    "static_ip": True,
                    "hosting_type": 1,
                    "driver_version": driver,
                    "geolocation": rng.choice(PLACES),
                    "dph_base": f"{rng.uniform(low, high):.4f}",
                    "storage_cost": f"{rng.choice((0.10, 0.15, 0.20)):.2f}",
                    "min_bid": f"{low * 0.6:.4f}",
                    "boot_s": round(rng.uniform(*SLOW_BOOT_S if name in SLOW else BOOT_S), 2),
                }
            )
    return machines


def offer(machine: dict[str, Any], offer_id: int, *, bid: bool, storage_gb: float, now: datetime) -> dict[str, Any]:
    """A row of the search: what can be computed is computed, not stored."""
    base = Decimal(machine["min_bid"] if bid else machine["dph_base"])
    storage = Decimal(machine["storage_cost"]) * Decimal(str(storage_gb)) / HOURS_PER_MONTH
    total = base + storage
    end = now + timedelta(days=30)
    return {
        **{name: value for name, value in machine.items() if name not in HIDDEN},
        "id": offer_id,
        "ask_contract_id": offer_id,
        "bundle_id": offer_id,
        "dph_base": float(base),
        "storage_cost": float(machine["storage_cost"]),
        "inet_up_cost": float(machine["inet_up_cost"]),
        "inet_down_cost": float(machine["inet_down_cost"]),
        "min_bid": float(machine["min_bid"]),
        "storage_total_cost": float(storage),
        "dph_total": float(total),
        "vram_costperhour": float(total / machine["gpu_ram"]),
        "flops_per_dphtotal": float(Decimal(str(machine["total_flops"])) / total),
        "dlperf_per_dphtotal": float(Decimal(str(machine["dlperf"])) / total),
        "rentable": True,
        "rented": False,
        "external": False,
        "start_date": (now - timedelta(days=30)).timestamp(),
        "end_date": end.timestamp(),
        "duration": (end - now).total_seconds(),
        "public_ipaddr": machine.get("public_ipaddr", "127.0.0.1"),
    }


def matching(rows: Iterable[dict[str, Any]], query: dict[str, Any]) -> list[dict[str, Any]]:
    """The vendor's filter object over offers, its order and limit; raises `BadFilter`."""
    found = [row for row in rows if all(_holds(row, *item) for item in query.items())]
    for column, direction in reversed(query.get("order") or []):
        name = ALIASES.get(column, column)
        found.sort(key=lambda row: _number(row.get(name, 0)), reverse=direction == "desc")
    limit = query.get("limit")
    return found[: int(limit)] if limit else found


def _holds(row: dict[str, Any], name: str, condition: Any) -> bool:
    if name in PLAIN_KEYS:
        return True
    name = ALIASES.get(name, name)
    if not isinstance(condition, dict):
        raise BadFilter(name)
    if name not in row and name not in ANY_FIELD:
        raise BadFilter(name)
    return all(_OPS[op](_value(row, name), wanted) for op, wanted in condition.items() if op in _OPS)


def _value(row: dict[str, Any], name: str) -> Any:
    virtual: dict[str, Callable[[], Any]] = {
        "verified": lambda: row["verification"] == "verified",
        "datacenter": lambda: row["hosting_type"] == 1,
        "geolocation": lambda: row["geolocation"].rpartition(",")[2].strip(),
        "target_reliability": lambda: row["reliability"],
        "driver_version": lambda: _driver(row["driver_version"]),
    }
    return virtual[name]() if name in virtual else row.get(name)


def _driver(text: str) -> int:
    """ "550.54.14" -> 550054014, as the vendor's client sends it."""
    major, minor, patch = text.split(".")
    return int(major) * 1_000_000 + int(minor) * 1_000 + int(patch)


def _same(value: Any, wanted: Any) -> bool:
    """The vendor's client sends numbers as text, and spaces for underscores."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return _truth(value) == _truth(wanted)
    try:
        return _number(value) == _number(wanted)
    except ValueError:
        return str(value).replace("_", " ") == str(wanted).replace("_", " ")


def _truth(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")


def _number(value: Any) -> float:
    if value is None or isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _compare(test: Callable[[float, float], bool]) -> Callable[[Any, Any], bool]:
    def holds(value: Any, wanted: Any) -> bool:
        try:
            return test(_number(value), _number(wanted))
        except ValueError:
            return False

    return holds


_OPS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _same,
    "neq": lambda value, wanted: not _same(value, wanted),
    "gt": _compare(lambda a, b: a > b),
    "gte": _compare(lambda a, b: a >= b),
    "lt": _compare(lambda a, b: a < b),
    "lte": _compare(lambda a, b: a <= b),
    "in": lambda value, wanted: any(_same(value, item) for item in wanted),
    "notin": lambda value, wanted: not any(_same(value, item) for item in wanted),
}
