"""What the simulated Compute Engine holds: machines and addresses, their states and their bills by second."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from common.domain.standby_price import (
    ADDRESS_USD_PER_HOUR,
    GOOGLE_HOURS_PER_MONTH,
    Terms,
    disk_usd_per_gb_month,
    machine_usd_per_hour,
)
from infra.demo.bill import Bill
from infra.demo.gcp.compute_work import URL, moment

BILLED_MIN = timedelta(seconds=60)
"""Of every run of a machine."""
UP = ("RUNNING", "STOPPING")
"""A machine bills until it has stopped."""


@dataclass
class Vm:
    """One instance; its id in the world is `zone/name`."""

    number: int
    name: str
    zone: str
    resource: dict[str, Any]
    """As it was asked for, in Google's JSON."""
    terms: Terms
    disk_gb: int
    ip: str
    created_at: datetime
    since: datetime
    """Of the present status."""
    status: str = "PROVISIONING"
    status_message: str = ""
    price_factor: Decimal = Decimal(1)
    started_at: datetime | None = None
    """Of the run that bills."""
    bill: Bill = field(default_factory=Bill)
    ended_at: datetime | None = None

    @property
    def id(self) -> str:
        return f"{self.zone}/{self.name}"

    @property
    def label(self) -> str:
        return self.name

    @property
    def state(self) -> str:
        return self.status

    @property
    def listed(self) -> bool:
        return self.ended_at is None

    @property
    def is_stopped(self) -> bool:
        """Its processes have ended; the disk is kept, and bills."""
        return self.status in ("STOPPING", "TERMINATED")

    @property
    def is_spot(self) -> bool:
        return self.terms.model == "spot"

    @property
    def is_up(self) -> bool:
        return self.listed and self.status in UP and self.started_at is not None

    def become(self, status: str, now: datetime, message: str = "") -> None:
        self.status, self.since, self.status_message = status, now, message
        if status == "RUNNING":
            self.started_at = now

    def halted(self, now: datetime) -> None:
        """The run is over: what it has not billed of its first minute is billed now."""
        if self.started_at and now - self.started_at < BILLED_MIN:
            self.bill.run("gpu", self.machine_usd_per_hour, now, self.started_at + BILLED_MIN)
        self.started_at = None

    @property
    def machine_usd_per_hour(self) -> Decimal:
        return machine_usd_per_hour(self.terms) * self.price_factor

    @property
    def disk_usd_per_hour(self) -> Decimal:
        return disk_usd_per_gb_month(self.terms) * self.disk_gb / GOOGLE_HOURS_PER_MONTH

    def address_usd_per_hour(self, *, is_reserved: bool) -> Decimal:
        """An address of the moment is given back when the machine stops; a reserved one then bills as unused."""
        return (
            ADDRESS_USD_PER_HOUR[self.terms.model if self.is_up else "unused"]
            if self.is_up or is_reserved
            else Decimal(0)
        )

    def accrue(self, since: datetime, until: datetime, *, has_reserved: bool) -> None:
        """Time in the present state."""
        if not self.listed:
            return
        if self.is_up:
            self.bill.run("gpu", self.machine_usd_per_hour, since, until)
        self.bill.run("disk", self.disk_usd_per_hour, max(since, self.created_at), until)
        self.bill.run("address", self.address_usd_per_hour(is_reserved=has_reserved), since, until)

    def usd_per_hour(self) -> Decimal:
        machine = self.machine_usd_per_hour if self.is_up else Decimal(0)
        return machine + self.address_usd_per_hour(is_reserved=False) + (self.disk_usd_per_hour if self.listed else 0)

    def shown(self, project: str, ip: str) -> dict[str, Any]:
        """As Google shows it; `ip` = "" while it holds none."""
        path = f"{URL}/projects/{project}/zones/{self.zone}"
        access = {"kind": "compute#accessConfig", "type": "ONE_TO_ONE_NAT", "name": "External NAT"}
        nic = {"network": self.resource["networkInterfaces"][0].get("network"), "name": "nic0"}
        return {
            "kind": "compute#instance",
            "id": str(self.number),
            "creationTimestamp": moment(self.created_at),
            "name": self.name,
            "zone": path,
            "status": self.status,
            "machineType": f"{path}/machineTypes/{self.terms.machine_type}",
            "labels": self.resource.get("labels", {}),
            "tags": self.resource.get("tags", {}),
            "scheduling": self.resource.get("scheduling", {}),
            "metadata": {"kind": "compute#metadata", **self.resource.get("metadata", {})},
            "networkInterfaces": [{**nic, "accessConfigs": [access | ({"natIP": ip} if ip else {})]}],
            "selfLink": f"{path}/instances/{self.name}",
            **({"lastStartTimestamp": moment(self.started_at)} if self.started_at else {}),
            **({"statusMessage": self.status_message} if self.status_message else {}),
        }

    def hardware(self) -> dict[str, Any]:
        """What its host measures (the agent's words for it): no GPU."""
        return {"gpu_models": [], "gpu_count": 0, "disk_bytes": self.disk_gb << 30, "cpu_cores": 2}

    def to_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "terms": self.terms.model_dump(), "bill": self.bill.to_json()}
        return {**_with_times_as_text(plain), "price_factor": str(self.price_factor)}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        made = {"terms": Terms(**plain["terms"]), "bill": Bill.from_json(plain["bill"])}
        return cls(**{**_with_times(plain), **made, "price_factor": Decimal(plain["price_factor"])})


@dataclass
class Reserved:
    """A static address of a region. It bills with the machine that holds it, else under its own name."""

    number: int
    name: str
    region: str
    ip: str
    created_at: datetime
    status: str = "RESERVING"
    bill: Bill = field(default_factory=Bill)
    ended_at: datetime | None = None

    @property
    def listed(self) -> bool:
        return self.ended_at is None

    def shown(self, project: str, holder: Vm | None) -> dict[str, Any]:
        path = f"{URL}/projects/{project}"
        users = {"users": [f"{path}/zones/{holder.zone}/instances/{holder.name}"]} if holder else {}
        return {
            "kind": "compute#address",
            "id": str(self.number),
            "creationTimestamp": moment(self.created_at),
            "name": self.name,
            "region": f"{path}/regions/{self.region}",
            "selfLink": f"{path}/regions/{self.region}/addresses/{self.name}",
            "addressType": "EXTERNAL",
            "networkTier": "PREMIUM",
            "status": "IN_USE" if holder else self.status,
            **({"address": self.ip} if self.status != "RESERVING" else {}),
            **users,
        }

    def to_json(self) -> dict[str, Any]:
        return _with_times_as_text({**asdict(self), "bill": self.bill.to_json()})

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        return cls(**{**_with_times(plain), "bill": Bill.from_json(plain["bill"])})


TIMES = ("created_at", "since", "started_at", "ended_at")


def _with_times_as_text(plain: dict[str, Any]) -> dict[str, Any]:
    return plain | {name: plain[name] and plain[name].isoformat() for name in TIMES if name in plain}


def _with_times(plain: dict[str, Any]) -> dict[str, Any]:
    return plain | {name: plain[name] and datetime.fromisoformat(plain[name]) for name in TIMES if name in plain}
