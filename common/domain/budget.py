"""What an account may spend per hour and per day, what it has spent, and what follows from both. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Self

from pydantic import Field

from common.domain.ledger import LedgerEntry, hour_of, to_usd
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.rental import Rental

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Period(StrEnum):
    """A UTC hour or a UTC day."""

    HOUR = "hour"
    DAY = "day"

    def start(self, now: datetime) -> datetime:
        return hour_of(now) if self is Period.HOUR else hour_of(now).replace(hour=0)

    def end(self, now: datetime) -> datetime:
        return self.start(now) + (HOUR if self is Period.HOUR else DAY)


class Budget(Model):
    """The document `budgets/<account>`. None = no cap."""

    schema_version: int = 1
    account: str
    usd_per_hour: Usd | None = Field(default=None, ge=0)
    usd_per_day: Usd | None = Field(default=None, ge=0)
    warned: dict[str, datetime] = {}
    """Period -> the start of the one that was warned of: once each."""
    told: dict[str, datetime] = {}
    """The same for a breach."""

    def cap(self, period: Period) -> Decimal | None:
        return self.usd_per_hour if period is Period.HOUR else self.usd_per_day

    def has_warned(self, period: Period, now: datetime) -> bool:
        return self.warned.get(period.value) == period.start(now)

    def has_told(self, period: Period, now: datetime) -> bool:
        return self.told.get(period.value) == period.start(now)

    def warning(self, period: Period, now: datetime) -> Self:
        return self.model_copy(update={"warned": self.warned | {period.value: period.start(now)}})

    def telling(self, period: Period, now: datetime) -> Self:
        return self.model_copy(update={"told": self.told | {period.value: period.start(now)}})


class Spending(Model):
    """Of one account at one moment."""

    burn_usd_per_hour: Usd
    """Of all its machines that run or boot now."""
    hour_usd: Usd
    """Since the UTC hour began: our meter, and the ledger for what is settled."""
    day_usd: Usd
    """Since the UTC day began."""

    def spent(self, period: Period) -> Decimal:
        return self.hour_usd if period is Period.HOUR else self.day_usd

    def predicted(self, period: Period, now: datetime) -> Decimal:
        """At the period's end, when everything runs on as it does."""
        left_h = Decimal(str((period.end(now) - now) / HOUR))
        return self.spent(period) + self.burn_usd_per_hour * left_h


class Level(StrEnum):
    FINE = "fine"
    WARNING = "warning"
    """The prediction breaks the cap."""
    EXCEEDED = "exceeded"
    """The cap is used up: everything is hibernated."""


class Finding(Model):
    level: Level
    period: Period
    text: str


def findings(budget: Budget, spending: Spending, now: datetime) -> list[Finding]:
    """One per cap that is, or will be, broken."""
    found: list[Finding] = []
    for period in Period:
        cap, spent, predicted = budget.cap(period), spending.spent(period), spending.predicted(period, now)
        if cap is None:
            continue
        if spent >= cap and (spent > 0 or spending.burn_usd_per_hour > 0):
            text = f"{spent:.4f} USD are spent of {cap} USD per {period}"
            found.append(Finding(level=Level.EXCEEDED, period=period, text=text))
        elif predicted > cap:
            text = f"{spent:.4f} USD are spent, and {predicted:.4f} USD will be, of {cap} USD per {period}"
            found.append(Finding(level=Level.WARNING, period=period, text=text))
    return found


def refusal(budget: Budget, spending: Spending, usd_per_hour: Decimal, now: datetime) -> str | None:
    """Why a further machine of that price may not start now, or None: nothing is started only to be stopped."""
    for period in Period:
        cap, spent = budget.cap(period), spending.spent(period)
        if cap is None:
            continue
        until = f"{period.end(now):%Y-%m-%d %H:%M} UTC"
        if spent >= cap:
            return f"{spent:.4f} USD are spent of {cap} USD per {period}; raise the cap or wait until {until}"
        if period is Period.HOUR and spending.burn_usd_per_hour + usd_per_hour > cap:
            burn = spending.burn_usd_per_hour
            return f"{usd_per_hour:.4f} USD/h on top of {burn:.4f} USD/h would break the cap of {cap} USD per hour"
    return None


def spending(rentals: Sequence[Rental], settled: Sequence[LedgerEntry], now: datetime) -> Spending:
    """`rentals` = those not settled; `settled` = ledger entries of today; those of unsettled rentals are left out."""
    labels = {rental.label for rental in rentals}
    booked = [entry for entry in settled if entry.label not in labels]
    live = [rental for rental in rentals if rental.is_live and rental.create_called_at]
    return Spending(
        burn_usd_per_hour=sum((rental.offer.usd_per_hour(rental.disk_gb) for rental in live), Decimal(0)),
        hour_usd=_since(Period.HOUR.start(now), rentals, booked, now),
        day_usd=_since(Period.DAY.start(now), rentals, booked, now),
    )


def _since(start: datetime, rentals: Sequence[Rental], booked: Sequence[LedgerEntry], now: datetime) -> Decimal:
    metered = Decimal(0)
    for rental in rentals:
        since = max(start, rental.assigned_at) if rental.assigned_at else start
        metered += sum(rental.metered_usd(now, since=since).values(), Decimal(0))
    return metered + to_usd(sum(entry.micro_usd for entry in booked if entry.hour >= start))
