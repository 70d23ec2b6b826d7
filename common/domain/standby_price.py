"""What a standby on Google Cloud costs, all in, and where it may stand: a dated table of prices, offers from it.

Google's interface for machines tells no prices, and the one for prices needs rights of its own; so the table is ours.
The promise to users is "about 7 USD a month": what it really comes to is computed here and shown.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict

from common.domain.offer import HOURS_PER_MONTH, Offer, Usd
from common.domain.region import Place, Region, near, region_of, regions

PRICES_AS_OF = "2024-11"
"""E2 machines (on demand and Spot) and disks per region: Google's list prices of that month, as its billing catalogue
gave them, read second-hand. Addresses and traffic: as Google announced them for February 2024, from memory. Spot
prices move up to once a month and have been seen to halve or double; look the table up before you promise it."""
GOOGLE_HOURS_PER_MONTH = Decimal(730)
"""Google prices a month of disk as so many hours."""

MACHINE_TYPES: dict[str, tuple[Decimal, float, float]] = {
    "e2-micro": (Decimal("0.25"), 0.25, 1.0),
    "e2-small": (Decimal("0.5"), 0.5, 2.0),
    "e2-medium": (Decimal(1), 1.0, 4.0),
}
"""Shared-core machines: price as a share of e2-medium's, vCPUs that may be used all the time, memory in GiB."""
DEFAULT_MACHINE_TYPE = "e2-small"
"""1 GiB is too little for an editor's server beside the mirror."""
DiskType = Literal["pd-standard", "pd-balanced"]
DEFAULT_DISK_TYPE: DiskType = "pd-balanced"
"""pd-standard costs 0.4 times as much and writes 1.5 times a second per GiB: too few for a mirror that fsyncs what it
acknowledges."""
DISK_GB_MIN = 10
"""The system's image."""

BILLED_S_MIN = 60.0
"""Of each run of a machine: Google bills by the second after its first minute."""
ADDRESS_USD_PER_HOUR: dict[str, Decimal] = {
    "spot": Decimal("0.0025"),
    "standard": Decimal("0.005"),
    "unused": Decimal("0.01"),
}
"""A static IPv4 address on a running Spot machine, on a running machine of the other kind, and on none that runs."""
EGRESS_USD_PER_GB = Decimal("0.12")
"""To the internet, premium tier, the first TiB of a month; what comes in is free."""
EGRESS_FROM_AUSTRALIA_USD_PER_GB = Decimal("0.19")

SPOT_REGIONS_MAX = 3
FURTHER_KM_MAX = 1500.0
"""A region is considered besides the nearest one if it is at most so much further away."""

Model = Literal["spot", "standard"]


class StandbyCost(BaseModel):
    """USD a month of 730 hours, by part. Traffic comes on top as it is used."""

    model_config = ConfigDict(frozen=True)

    machine: Usd
    disk: Usd
    address: Usd
    egress: Usd
    """Of the GB that were asked about."""
    as_of: str = PRICES_AS_OF

    @property
    def usd_per_month(self) -> Decimal:
        return self.machine + self.disk + self.address + self.egress

    @property
    def usd_per_hour(self) -> Decimal:
        return self.usd_per_month / GOOGLE_HOURS_PER_MONTH


class Terms(BaseModel):
    """What a standby is created as; an offer's id carries it, so that what was priced is what is created."""

    model_config = ConfigDict(frozen=True)

    zone: str
    machine_type: str = DEFAULT_MACHINE_TYPE
    model: Model = "spot"
    disk_type: DiskType = DEFAULT_DISK_TYPE

    @property
    def offer_id(self) -> str:
        return f"{self.zone}/{self.machine_type}/{self.model}/{self.disk_type}"

    @property
    def region(self) -> str:
        return region_of(self.zone)


def terms_of(offer_id: str) -> Terms:
    """Raises ValueError for what is no standby's offer."""
    parts = offer_id.split("/")
    if len(parts) != 4 or parts[1] not in MACHINE_TYPES:
        raise ValueError(f"not a standby's offer: {offer_id!r}")
    return Terms.model_validate(dict(zip(("zone", "machine_type", "model", "disk_type"), parts, strict=True)))


def machine_usd_per_hour(terms: Terms) -> Decimal:
    """Raises KeyError for a region or machine type that is not in the tables."""
    region = regions()[terms.region]
    medium = region.e2_medium_spot if terms.model == "spot" else region.e2_medium
    return medium * MACHINE_TYPES[terms.machine_type][0]


def disk_usd_per_gb_month(terms: Terms) -> Decimal:
    """Per GiB and month of 730 hours."""
    region = regions()[terms.region]
    return region.pd_balanced if terms.disk_type == "pd-balanced" else region.pd_standard


def monthly_cost(terms: Terms, disk_gb: int, *, egress_gb: Decimal = Decimal(0)) -> StandbyCost:
    """A month of a standby that runs all the time."""
    return StandbyCost(
        machine=machine_usd_per_hour(terms) * GOOGLE_HOURS_PER_MONTH,
        disk=disk_usd_per_gb_month(terms) * max(disk_gb, DISK_GB_MIN),
        address=ADDRESS_USD_PER_HOUR[terms.model] * GOOGLE_HOURS_PER_MONTH,
        egress=_egress_usd_per_gb(regions()[terms.region]) * egress_gb,
    )


def standby_offers(
    place: Place,
    disk_gb: int,
    *,
    max_usd_per_hour: Decimal | None = None,
    machine_type: str = DEFAULT_MACHINE_TYPE,
    disk_type: DiskType = DEFAULT_DISK_TYPE,
) -> tuple[Offer, ...]:
    """Where a standby for a machine at that place may stand, the best first.

    Spot in the nearest region's zones, then in those of the next regions that are not much further away; on demand in
    the same order as the last resort. What costs more than the cap with a disk of that size is left out. A static
    address stays in its region: who has one takes its region's offers.
    """
    there = near(place)
    regions_near = [one for one in there if one.km <= there[0].km + FURTHER_KM_MAX][:SPOT_REGIONS_MAX]
    models: tuple[Model, ...] = ("spot", "standard")
    offers = (
        standby_offer(Terms(zone=zone, machine_type=machine_type, model=model, disk_type=disk_type))
        for model in models
        for one in regions_near
        for zone in one.region.zones
    )
    return tuple(o for o in offers if max_usd_per_hour is None or o.usd_per_hour(disk_gb) <= max_usd_per_hour)


def offers_in(region: str) -> tuple[Offer, ...]:
    """Of one region, wherever the GPU is: Spot in each of its zones, then on demand. Raises KeyError for another's."""
    models: tuple[Model, ...] = ("spot", "standard")
    return tuple(standby_offer(Terms(zone=zone, model=model)) for model in models for zone in regions()[region].zones)


def standby_offer(terms: Terms) -> Offer:
    """One offer at all-in prices: machine and address while it runs, the disk as long as it exists."""
    region = regions()[terms.region]
    _, vcpus, ram_gb = MACHINE_TYPES[terms.machine_type]
    return Offer(
        provider="gcp",
        offer_id=terms.offer_id,
        machine_id=terms.zone,
        gpu="cpu",
        num_gpus=0,
        gpu_ram_mb=0,
        gpu_usd_per_hour=machine_usd_per_hour(terms) + ADDRESS_USD_PER_HOUR[terms.model],
        gpu_bills_from="running",
        billed_s_min=BILLED_S_MIN,
        storage_usd_per_gb_month=disk_usd_per_gb_month(terms) * HOURS_PER_MONTH / GOOGLE_HOURS_PER_MONTH,
        upload_usd_per_gb=_egress_usd_per_gb(region),
        country=region.country,
        geolocation=f"{region.place}, {region.country}",
        disk_space_gb=65_536,
        disk_gb_min=DISK_GB_MIN,
        vcpus=vcpus,
        ram_gb=ram_gb,
    )


def _egress_usd_per_gb(region: Region) -> Decimal:
    return EGRESS_FROM_AUSTRALIA_USD_PER_GB if region.country == "AU" else EGRESS_USD_PER_GB
