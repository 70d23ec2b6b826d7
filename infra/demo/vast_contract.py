"""One contract on the simulated Vast.ai: its four status fields and its bill, second by second."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from infra.demo.bill import Bill
from infra.demo.vast_market import HIDDEN

BYTES_PER_GB = Decimal(10**9)
HOURS_PER_MONTH = 720
KINDS = {"gpu": "gpu", "disk": "disk", "bandwidth_up": "bwu", "bandwidth_down": "bwd"}
"""Our word for a kind of charge -> the vendor's."""
TIMES = ("created_at", "gpu_since", "disk_since", "ended_at", "listed_from", "ghost_until")


@dataclass
class Contract:
    """`actual` is what the host last told; `cur`, `next` and `intended` are the contract's own words."""

    id: int
    machine: dict[str, Any]
    """The offer's terms at the time of the create."""
    label: str
    image: str
    disk_gb: int
    env: dict[str, str]
    onstart: str
    is_bid: bool
    bid: str | None
    created_at: datetime
    boots: list[tuple[str, float]]
    """(actual_status, seconds after creation), in order."""
    actual: str | None = None
    cur: str = "running"
    next: str = "running"
    intended: str = "running"
    message: str = ""
    gpu_since: datetime | None = None
    disk_since: datetime | None = None
    offline: bool = False
    ended_at: datetime | None = None
    """Destroyed or lost: no longer listed."""
    listed_from: datetime | None = None
    """The listing call knows it only from then on, as when the vendor's index lags; None = at once."""
    ghost_until: datetime | None = None
    """The listing call still shows it until then, although it ended."""
    bill: Bill = field(default_factory=Bill)

    @property
    def listed(self) -> bool:
        return self.ended_at is None

    @property
    def is_stopped(self) -> bool:
        return self.cur == "stopped"

    def is_in_listing(self, now: datetime) -> bool:
        """What the listing call says; the show call always tells the truth."""
        if self.ended_at is not None:
            return self.ghost_until is not None and now < self.ghost_until
        return self.listed_from is None or now >= self.listed_from

    @property
    def state(self) -> str:
        if not self.listed:
            return "gone"
        return "stopped" if self.cur == "stopped" else self.actual or "created"

    def accrue(self, now: datetime) -> None:
        """Move the meters up to now."""
        if self.gpu_since:
            self.bill.run("gpu", Decimal(self.machine["dph_base"]), self.gpu_since, now)
            self.gpu_since = now
        if self.disk_since:
            self.bill.run("disk", self.disk_usd_per_hour(), self.disk_since, now)
            self.disk_since = now

    def transfer(self, up_bytes: int, down_bytes: int, now: datetime) -> None:
        for kind, size, price in (
            ("bandwidth_up", up_bytes, self.machine["inet_up_cost"]),
            ("bandwidth_down", down_bytes, self.machine["inet_down_cost"]),
        ):
            self.bill.add(kind, Decimal(price) * size / BYTES_PER_GB, now)

    def run(self, now: datetime) -> None:
        self.actual, self.message = "running", f"success, running {self.image}/ssh"
        self.gpu_since = self.gpu_since or now

    def stop(self, now: datetime, message: str = "") -> None:
        """The GPU is given back, the disk goes on billing."""
        self.accrue(now)
        self.gpu_since = None
        self.actual, self.message = ("exited" if self.actual == "running" else self.actual), message
        self.cur = self.next = self.intended = "stopped"

    def end(self, now: datetime) -> None:
        self.accrue(now)
        self.gpu_since = self.disk_since = None
        self.ended_at = now

    def billed(self, now: datetime) -> dict[tuple[str, datetime], Decimal]:
        """(kind, hour) -> dollars, rounded once, half-even, to micro-dollars."""
        self.accrue(now)
        return self.bill.rounded()

    def totals(self, now: datetime) -> dict[str, Decimal]:
        """kind -> dollars: exactly what the charges call says at the same moment."""
        self.accrue(now)
        return self.bill.totals()

    def spent(self, now: datetime) -> Decimal:
        """All of the bill until now."""
        return sum(self.billed(now).values(), Decimal(0))

    def usd_per_hour(self) -> Decimal:
        """What bills right now."""
        gpu = Decimal(self.machine["dph_base"]) if self.gpu_since else Decimal(0)
        return gpu + (self.disk_usd_per_hour() if self.disk_since else Decimal(0))

    def disk_usd_per_hour(self) -> Decimal:
        return Decimal(self.machine["storage_cost"]) * self.disk_gb / HOURS_PER_MONTH

    def charge_row(self, now: datetime, low_s: float, high_s: float) -> dict[str, Any] | None:
        """The charges call's: one for all of the contract's days whose midnight is within the bounds, None of none."""
        days: set[float] = set()
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for (kind, hour), usd in self.billed(now).items():
            midnight_s = hour.replace(hour=0).timestamp()
            if low_s <= midnight_s <= high_s:
                days.add(midnight_s)
                sums[kind] += usd
        if not days:
            return None
        span = {"start": min(days), "end": max(days)}
        items = [
            {**span, "type": KINDS[kind], "description": f"{kind} of instance {self.id}", "amount": float(usd)}
            for kind, usd in sums.items()
        ]
        return {
            **span,
            "type": "instance",
            "source": f"instance-{self.id}",
            "description": f"Instance {self.id} Charges - {len(days)} days",
            "amount": float(sum(sums.values(), Decimal(0))),
            "metadata": {"label": self.label},
            "items": items,
        }

    def row(self, now: datetime) -> dict[str, Any]:
        """As the list and the show calls give it."""
        port = 40000 + self.id % 20000
        return {
            **{name: value for name, value in self.machine.items() if name not in HIDDEN},
            "id": self.id,
            "label": self.label,
            "actual_status": "offline" if self.offline else self.actual,
            "cur_state": self.cur,
            "next_state": self.next,
            "intended_status": self.intended,
            "status_msg": self.message,
            "is_bid": self.is_bid,
            "image_uuid": self.image,
            "dph_base": float(self.machine["dph_base"]),
            "storage_total_cost": float(self.disk_usd_per_hour()),
            "dph_total": float(Decimal(self.machine["dph_base"]) + self.disk_usd_per_hour()),
            "disk_space": self.disk_gb,
            "start_date": self.created_at.timestamp(),
            "duration": (now - self.created_at).total_seconds(),
            "extra_env": [[name, value] for name, value in self.env.items()],
            "onstart": self.onstart,
            "public_ipaddr": "127.0.0.1 ",
            "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}]} if self.actual == "running" else {},
            "ssh_host": "127.0.0.1",
            "ssh_port": port,
        }

    def hardware(self) -> dict[str, Any]:
        """What its host measures (the agent's words for it), lies included."""
        machine = self.machine
        measured = {
            "gpu_models": [f"NVIDIA {machine.get('wrong_gpu') or machine['gpu_name']}"] * machine["num_gpus"],
            "gpu_count": machine["num_gpus"],
            "gpu_ram_mb": machine["gpu_ram"],
            "driver": machine["driver_version"],
            "cuda": machine["cuda_max_good"],
            "disk_bytes": int(machine.get("small_disk") or self.disk_gb) * 10**9,
            "cpu_cores": int(machine["cpu_cores_effective"]),
        }
        slow = machine.get("slow_net")
        return measured | ({"download_mbit_s": slow, "upload_mbit_s": slow} if slow else {})

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        for name in TIMES:
            plain[name] = plain[name].isoformat() if plain[name] else None
        return {**plain, "bill": self.bill.to_json()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        times = {name: datetime.fromisoformat(plain[name]) if plain.get(name) else None for name in TIMES}
        bill = Bill.from_json(plain["bill"])
        return cls(**{**plain, **times, "bill": bill, "boots": [tuple(step) for step in plain["boots"]]})
