"""What a marketplace offers, and what it costs all in."""

import math
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer

from common.domain.model import Model

Usd = Annotated[Decimal, PlainSerializer(str, return_type=str)]
"""Money and rates: Decimal in the domain, a string in documents and answers."""

HOURS_PER_MONTH = Decimal(720)
"""Marketplaces quote storage per month of 720 hours."""
RATE_MAX = 10_000
"""USD. A listing that asks for more is broken or poisoned."""


PRICE_SLACK = Decimal("1.02")
"""A machine may cost so much more than was shown: marketplaces round, and prices move by the minute."""


class Wanted(Model):
    """What to search for."""

    gpu: str
    """The model's name in every marketplace, for example `RTX 4090` or `H100 SXM`."""
    num_gpus: int = Field(default=1, ge=1, le=16)
    disk_gb: int = Field(default=32, ge=8, le=16_000)
    max_usd_per_hour: Usd | None = None
    """Cap on GPU + disk per hour."""
    regions: tuple[str, ...] = ()
    """ISO 3166 alpha-2 country codes; empty = anywhere."""
    image_matters: bool = False
    """The user chose a container image, so a marketplace of virtual machines has nothing for this wish."""
    limit: int = Field(default=64, ge=1, le=512)


class Offer(Model):
    """One machine slice for rent. Offer ids are unstable; (provider, machine_id, num_gpus) is what stays."""

    provider: str
    offer_id: str
    machine_id: str
    gpu: str
    num_gpus: int
    gpu_ram_mb: int
    gpu_usd_per_hour: Usd
    """For the whole slice, without disk: GPUs, CPUs and memory."""
    gpu_bills_from: Literal["running", "created"] = "running"
    """Does the slice bill while it still boots?"""
    billed_s_min: float = 0.0
    """A run of the machine bills for no less, however short it was."""
    bid_floor_usd_per_hour: Usd | None = None
    """The lowest bid that rents the slice now, where the marketplace takes bids; without disk, like the price."""
    storage_usd_per_gb_month: Usd
    upload_usd_per_gb: Usd = Decimal(0)
    download_usd_per_gb: Usd = Decimal(0)
    upload_mbit_s: float = 0.0
    download_mbit_s: float = 0.0
    reliability: float = 0.0
    """0..1 as the marketplace states it."""
    country: str | None = None
    """ISO 3166 alpha-2 where the marketplace's text ends in one."""
    geolocation: str | None = None
    public_ip: str | None = None
    """As the marketplace states it, unchecked: where the machine stands when its text does not say."""
    cuda_max: float | None = None
    driver_version: str | None = None
    disk_space_gb: float = 0.0
    disk_gb_min: int = 0
    disk_gb_step: int = 1
    """The marketplace creates disks of at least the one, in multiples of the other."""
    vcpus: float = 0.0
    ram_gb: float = 0.0

    def created_disk_gb(self, disk_gb: int) -> int:
        """What a wish for `disk_gb` is created with, and billed for."""
        return math.ceil(max(disk_gb, self.disk_gb_min) / self.disk_gb_step) * self.disk_gb_step

    @property
    def machine_key(self) -> str:
        """`provider:machine_id`: the key of the reliability history."""
        return f"{self.provider}:{self.machine_id}"

    def disk_usd_per_hour(self, disk_gb: int) -> Decimal:
        """storage_usd_per_gb_month x GB as created / 720 h."""
        return self.storage_usd_per_gb_month * self.created_disk_gb(disk_gb) / HOURS_PER_MONTH

    def usd_per_hour(self, disk_gb: int) -> Decimal:
        """GPU + disk per hour: what runs all the time; bandwidth comes on top as it is used."""
        return self.gpu_usd_per_hour + self.disk_usd_per_hour(disk_gb)

    def cap_usd_per_hour(self, disk_gb: int, max_usd_per_hour: Decimal | None) -> Decimal:
        """The most that a machine of this offer may cost: what was shown with PRICE_SLACK, and never above the wish."""
        shown = self.usd_per_hour(disk_gb) * PRICE_SLACK
        return shown if max_usd_per_hour is None else min(shown, max_usd_per_hour)


class Survey(Model):
    """What one marketplace has of one GPU model, in slices of every size."""

    offers: tuple[Offer, ...]
    is_whole: bool
    """False: the answer was cut off, so what is not in it may be there all the same."""


def exact(value: object) -> Decimal:
    """A number of a marketplace's JSON (read with `parse_float=Decimal`); raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or not Decimal(value).is_finite():
        raise ValueError(f"not a number: {value!r}")
    return Decimal(value)


def exact_rate(value: object) -> Decimal:
    """A rate that can be believed: not negative and below RATE_MAX dollars; raises ValueError."""
    rate = exact(value)
    if not 0 <= rate < RATE_MAX:
        raise ValueError(f"not a rate: {value}")
    return rate


def exact_price(value: object) -> Decimal:
    """A rate of something that is never free; raises ValueError."""
    if (price := exact_rate(value)) == 0:
        raise ValueError("a price of zero")
    return price
