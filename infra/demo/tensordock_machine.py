"""One virtual machine on the simulated TensorDock: its one status and its bill, second by second."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from infra.demo.bill import Bill

STOP_S = 2.0
DELETE_S = 1.0
"""A deleted machine is still shown, as deleting, for so long; it no longer bills."""
TIMES = ("created_at", "since", "bills_since", "disk_since", "ended_at")


@dataclass
class Machine:
    id: str
    name: str
    host: dict[str, Any]
    gpu: str
    """The vendor's v0Name."""
    gpus: int
    vcpus: int
    ram_gb: int
    disk_gb: int
    compute_usd_per_hour: Decimal
    """GPUs, CPUs and memory: billed from the create until it is stopped or deleted."""
    disk_usd_per_hour: Decimal
    """Billed until it is deleted, also while it is stopped."""
    ports: list[dict[str, int]]
    gpu_given: str
    cloud_init: dict[str, Any]
    created_at: datetime
    since: datetime
    """Of the present status."""
    bills_since: datetime | None
    disk_since: datetime | None
    status: str = "queued"
    stuck: bool = False
    ended_at: datetime | None = None
    disk_given_gb: int | None = None
    """What the host really gives; None = what was asked for."""
    bill: Bill = field(default_factory=Bill)

    @property
    def label(self) -> str:
        return self.name

    @property
    def listed(self) -> bool:
        return self.status != "deleted"

    @property
    def state(self) -> str:
        return self.status

    @property
    def is_stopped(self) -> bool:
        return self.status.startswith("stop")

    def become(self, status: str, now: datetime) -> None:
        self.status, self.since = status, now
        if status == "deleted":
            self.ended_at = now

    def accrue(self, now: datetime) -> None:
        """Move the meters up to now."""
        if self.bills_since:
            self.bill.run("gpu", self.compute_usd_per_hour, self.bills_since, now)
            self.bills_since = now
        if self.disk_since:
            self.bill.run("disk", self.disk_usd_per_hour, self.disk_since, now)
            self.disk_since = now

    def stop_billing(self, now: datetime) -> None:
        self.accrue(now)
        self.bills_since = self.disk_since = None

    def usd_per_hour(self) -> Decimal:
        compute = self.compute_usd_per_hour if self.bills_since else Decimal(0)
        return compute + (self.disk_usd_per_hour if self.disk_since else Decimal(0))

    def row(self) -> dict[str, Any]:
        """As the listing gives it: name and status only."""
        status = self.status.title() if self.status.startswith("stop") else self.status
        attributes = {"name": self.name, "status": status.replace("Stoppedd", "Stopped_D")}
        return {"type": "virtualmachine", "id": self.id, "attributes": attributes}

    def detail(self, _now: datetime) -> dict[str, Any]:
        """As the call for one machine gives it: flat."""
        return {
            "type": "virtualmachine",
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "ipAddress": "127.0.0.1" if self.status not in ("queued", "starting") else "",
            "portForwards": self.ports,
            "resources": {
                "vcpu_count": self.vcpus,
                "ram_gb": self.ram_gb,
                "storage_gb": self.disk_gb,
                "gpus": {self.gpu_given: {"count": self.gpus, "v0Name": self.gpu_given}},
            },
            "rateHourly": float(self.compute_usd_per_hour + self.disk_usd_per_hour),
        }

    def hardware(self) -> dict[str, Any]:
        """What its host measures (the agent's words for it): the GPUs it was given, whatever was asked for."""
        return {
            "gpu_models": [f"NVIDIA {self.gpu_given}"] * self.gpus,
            "gpu_count": self.gpus,
            "disk_bytes": (self.disk_given_gb or self.disk_gb) * 10**9,
            "cpu_cores": self.vcpus,
        }

    def to_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "bill": self.bill.to_json()}
        for name in TIMES:
            plain[name] = plain[name].isoformat() if plain[name] else None
        for name in ("compute_usd_per_hour", "disk_usd_per_hour"):
            plain[name] = str(plain[name])
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        times: dict[str, Any] = {name: plain[name] and datetime.fromisoformat(plain[name]) for name in TIMES}
        rates = {name: Decimal(plain[name]) for name in ("compute_usd_per_hour", "disk_usd_per_hour")}
        return cls(**{**plain, **times, **rates, "bill": Bill.from_json(plain["bill"])})


def uuid_of(number: int) -> str:
    """Ids that look like the vendor's and are the same in every run."""
    return str(uuid.UUID(int=0x7E2504D0C4000000 << 64 | number, version=4))
