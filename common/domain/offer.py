"""What a marketplace offers, and what it costs all in."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

Usd = Annotated[Decimal, PlainSerializer(str, return_type=str)]
"""Money and rates: Decimal in the domain, a string in documents and answers."""

HOURS_PER_MONTH = Decimal(720)
"""Marketplaces quote storage per month of 720 hours."""


class Wanted(BaseModel):
    """What to search for."""

    model_config = ConfigDict(frozen=True)

    gpu: str
    """The marketplace's own model name, for example `RTX 4090`."""
    num_gpus: int = Field(default=1, ge=1, le=16)
    disk_gb: int = Field(default=32, ge=8, le=16_000)
    max_usd_per_hour: Usd | None = None
    """Cap on GPU + disk per hour."""
    regions: tuple[str, ...] = ()
    """ISO 3166 alpha-2 country codes; empty = anywhere."""
    limit: int = Field(default=64, ge=1, le=512)


class Offer(BaseModel):
    """One machine slice for rent. Offer ids are unstable; (provider, machine_id, num_gpus) is what stays."""

    model_config = ConfigDict(frozen=True)

    provider: str
    offer_id: str
    machine_id: str
    gpu: str
    num_gpus: int
    gpu_ram_mb: int
    gpu_usd_per_hour: Usd
    """For the whole slice, without disk."""
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
    cuda_max: float | None = None
    driver_version: str | None = None
    disk_space_gb: float = 0.0

    @property
    def machine_key(self) -> str:
        """`provider:machine_id`: the key of the reliability history."""
        return f"{self.provider}:{self.machine_id}"

    def disk_usd_per_hour(self, disk_gb: int) -> Decimal:
        """storage_usd_per_gb_month x GB / 720 h."""
        return self.storage_usd_per_gb_month * disk_gb / HOURS_PER_MONTH

    def usd_per_hour(self, disk_gb: int) -> Decimal:
        """GPU + disk per hour: what runs all the time; bandwidth comes on top as it is used."""
        return self.gpu_usd_per_hour + self.disk_usd_per_hour(disk_gb)
