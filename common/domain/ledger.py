"""What providers billed, in integer micro-dollars per (rental, kind, UTC hour)."""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

from pydantic import BaseModel, ConfigDict

MICRO = Decimal(10**6)


class LedgerEntry(BaseModel):
    """The document `ledger/<label>.<kind>.<hour>`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    account: str
    instance_id: str | None
    instance_key: str | None
    label: str
    provider: str
    kind: str
    hour: datetime
    micro_usd: int

    @property
    def id(self) -> str:
        return f"{self.label}.{self.kind}.{self.hour:%Y%m%d%H}"


def to_micro(usd: Decimal) -> int:
    """Rounded once, half-even."""
    return int((usd * MICRO).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def to_usd(micro_usd: int) -> Decimal:
    return Decimal(micro_usd) / MICRO


def hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
