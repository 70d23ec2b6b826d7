"""The warm pool as it is now: its terms, its machines, what it costs."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.pool import PoolTerms
from common.domain.rental import POOL, Rental, RentalState
from common.ports import App, every


class PoolMachine(Model):
    label: str
    provider: str
    machine_id: str
    gpu: str
    state: RentalState
    age_s: float
    """In this state."""
    usd_per_hour: Usd
    cost_usd: Usd
    """So far, by our own meter."""
    message: str


class PoolOut(Model):
    terms: PoolTerms
    ready: int
    usd_per_hour: Usd
    """Of the machines that run or boot now."""
    machines: list[PoolMachine]


def show(app: App, now: datetime) -> PoolOut:
    docs = every(app.store, "rentals", [("account", "==", POOL), ("settled", "==", False)])
    rentals = [Rental.model_validate(doc.data) for doc in docs]
    live = [rental for rental in rentals if rental.is_live]
    return PoolOut(
        terms=app.settings.pool,
        ready=sum(rental.state is RentalState.READY for rental in live),
        usd_per_hour=sum((rental.offer.usd_per_hour(rental.disk_gb) for rental in live), Decimal(0)),
        machines=[_machine(rental, now) for rental in rentals],
    )


def _machine(rental: Rental, now: datetime) -> PoolMachine:
    return PoolMachine(
        label=rental.label,
        provider=rental.provider,
        machine_id=rental.offer.machine_id,
        gpu=rental.offer.gpu,
        state=rental.state,
        age_s=(now - rental.at).total_seconds(),
        usd_per_hour=rental.offer.usd_per_hour(rental.disk_gb),
        cost_usd=sum(rental.metered_usd(now).values(), Decimal(0)),
        message=rental.message,
    )
