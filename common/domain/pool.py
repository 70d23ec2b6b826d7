"""The warm pool: machines that are rented, attested and wait, so that an instance starts without a boot. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal

from pydantic import ConfigDict, Field, field_validator

from common.domain.attempt import failure
from common.domain.host import HostRecord
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.ranking import Ranked
from common.domain.reliability import Outcome
from common.domain.rental import POOL, Rental, RentalState
from common.domain.spec import Spec, country_codes
from common.domain.strategy import one_per_machine

TRIED_KEPT = 16
"""Machines of the pool's last attempts, which are tried again only when there is no other."""


class PoolTerms(Model):
    """What the pool holds, and its own budget: settings of the deployment, DUMONT_POOL_<NAME>."""

    model_config = ConfigDict(extra="forbid")

    size: int = Field(default=0, ge=0, le=20)
    """Machines that wait or boot; 0 = no pool."""
    gpu: str = Field(default="RTX 4090", min_length=1, max_length=64)
    num_gpus: int = Field(default=1, ge=1, le=16)
    image: str = Field(default=Spec.model_fields["image"].default, min_length=1, max_length=256)
    disk_gb: int = Field(default=32, ge=8, le=16_000)
    max_usd_per_hour: Usd | None = Field(default=None, gt=0)
    """Of one machine, GPU + disk."""
    budget_usd_per_hour: Usd = Field(default=Decimal(1), gt=0)
    """Of all its machines together: the pool stays smaller than its size rather than cost more."""
    max_age_s: float = Field(default=6 * 3600, gt=0)
    """Ready for so long without an owner: let go and replaced, so that no machine idles unseen for ever."""
    regions: tuple[str, ...] = ()

    @field_validator("regions", mode="before")
    @classmethod
    def _from_text(cls, regions: object) -> object:
        return [part.strip() for part in regions.split(",") if part.strip()] if isinstance(regions, str) else regions

    @field_validator("regions")
    @classmethod
    def _country_codes(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        return country_codes(regions)

    def spec(self) -> Spec:
        """As a wish, for the search."""
        return Spec(
            gpu=self.gpu,
            num_gpus=self.num_gpus,
            image=self.image,
            disk_gb=self.disk_gb,
            max_usd_per_hour=self.max_usd_per_hour,
            regions=self.regions,
        )


class PoolRecord(Model):
    """The document `pool/self`: serialises refills and numbers the pool's labels."""

    schema_version: int = 1
    n: int = 0
    tried: tuple[str, ...] = ()
    """Machine ids of the last attempts, newest last."""

    def planning(self, machines: Sequence[str]) -> PoolRecord:
        return self.model_copy(
            update={"n": self.n + len(machines), "tried": (*self.tried, *machines)[-TRIED_KEPT:]}
        )  # fmt: skip


def wanting(terms: PoolTerms, live: Sequence[Rental], offers: Sequence[Ranked], tried: Collection[str]) -> list[Ranked]:
    """The offers that fill the pool up to its size and its budget, the best ranked untried ones first."""
    missing = terms.size - len(live)
    left = terms.budget_usd_per_hour - sum((_usd_per_hour(rental) for rental in live), Decimal(0))
    held = {rental.offer.machine_key for rental in live}
    free = [ranked for ranked in one_per_machine(offers) if ranked.offer.machine_key not in held]
    chosen: list[Ranked] = []
    for ranked in sorted(free, key=lambda r: r.offer.machine_id in tried):
        if len(chosen) < missing and ranked.usd_per_hour <= left:
            chosen.append(ranked)
            left -= ranked.usd_per_hour
    return chosen


def ended(
    rental: Rental,
    host: HostRecord | None,
    terms: PoolTerms,
    *,
    boot_timeout_s: float,
    silent_after_s: float,
    now: datetime,
) -> tuple[Outcome, str] | None:
    """Why a machine of the pool is let go now, and how that counts for it; None = it stays."""
    match rental.state:
        case RentalState.CREATING | RentalState.LOST:
            return failure(rental, host, boot_timeout_s=boot_timeout_s, now=now)
        case RentalState.READY if host is None or host.silent_for_s(now) > silent_after_s:
            return Outcome.SILENT, "silent while it waited in the pool"
        case RentalState.READY if (now - rental.at).total_seconds() > terms.max_age_s:
            return Outcome.SERVED, f"ready for {terms.max_age_s:.0f} s without an owner"
    return None


def surplus(terms: PoolTerms, live: Sequence[Rental]) -> list[Rental]:
    """Machines beyond the size, of other terms or beyond the budget: those that only boot first, then the dearest."""
    spec, kept, cost = terms.spec(), 0, Decimal(0)
    surplus: list[Rental] = []
    for rental in sorted(live, key=lambda r: (r.state is not RentalState.READY, _usd_per_hour(r))):
        fits_budget = cost + _usd_per_hour(rental) <= terms.budget_usd_per_hour
        if kept < terms.size and fits_budget and serves(rental, spec):
            kept, cost = kept + 1, cost + _usd_per_hour(rental)
        else:
            surplus.append(rental)
    return surplus


def serves(rental: Rental, spec: Spec) -> bool:
    """Would this machine be what the wish asks for?"""
    offer, cap = rental.offer, spec.max_usd_per_hour
    return (
        (offer.gpu, offer.num_gpus, rental.image) == (spec.gpu, spec.num_gpus, spec.image)
        and rental.disk_gb >= spec.disk_gb
        and (cap is None or _usd_per_hour(rental) <= cap)
        and (not spec.regions or offer.country in spec.regions)
    )


def assignable(rental: Rental, host: HostRecord | None, spec: Spec, *, silent_after_s: float, now: datetime) -> bool:
    """Ready, nobody's, heard of lately, and what the wish asks for."""
    fresh = host is not None and host.silent_for_s(now) <= silent_after_s
    return rental.state is RentalState.READY and rental.instance_key is None and fresh and serves(rental, spec)


def is_pooled(rental: Rental) -> bool:
    """In the pool, or once planned for it and never assigned."""
    return rental.account == POOL and rental.instance_key is None


def _usd_per_hour(rental: Rental) -> Decimal:
    return rental.offer.usd_per_hour(rental.disk_gb)
