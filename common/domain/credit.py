"""How long the money on a marketplace account lasts. When it is gone every machine stops, and may lose its data."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from common.domain.model import Model
from common.domain.offer import Usd

CRITICAL_READINGS = 2
"""In a row: one answer that is wrong hibernates nobody."""


class Level(StrEnum):
    FINE = "fine"
    LOW = "low"
    """Somebody should add credit."""
    CRITICAL = "critical"
    """Everything is hibernated while there is money left to do it."""


class Runway(Model):
    """The document `runways/<market>`."""

    schema_version: int = 1
    market: str
    credit_usd: Usd
    burn_usd_per_hour: Usd
    """Of every live machine by its offer's terms, GPU + disk."""
    hours_left: float | None
    """None = nothing burns."""
    level: Level
    readings: int
    """In a row at this level."""
    at: datetime

    @property
    def must_hibernate(self) -> bool:
        return self.level is Level.CRITICAL and self.readings >= CRITICAL_READINGS


def runway_of(
    market: str,
    *,
    credit_usd: Decimal,
    burn_usd_per_hour: Decimal,
    warn_below_h: float,
    hibernate_below_h: float,
    before: Runway | None,
    now: datetime,
) -> Runway:
    hours = float(credit_usd / burn_usd_per_hour) if burn_usd_per_hour > 0 else None
    level = _level(hours, warn_below_h, hibernate_below_h)
    return Runway(
        market=market,
        credit_usd=credit_usd,
        burn_usd_per_hour=burn_usd_per_hour,
        hours_left=hours,
        level=level,
        readings=before.readings + 1 if before and before.level is level else 1,
        at=now,
    )


def _level(hours: float | None, warn_below_h: float, hibernate_below_h: float) -> Level:
    if hours is None or hours >= warn_below_h:
        return Level.FINE
    return Level.LOW if hours >= hibernate_below_h else Level.CRITICAL
