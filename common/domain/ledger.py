"""What machines cost, in integer micro-dollars per (rental, kind, UTC hour)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict

MICRO = Decimal(10**6)
HOUR = timedelta(hours=1)
SECONDS_PER_HOUR = Decimal(3600)


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
    source: Literal["billed", "computed"] = "billed"
    """billed: read from the provider's charges; computed: it publishes none, so our meter at the offer's terms."""

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


def by_hour(usd_per_hour: Decimal, start: datetime | None, end: datetime) -> Iterator[tuple[datetime, Decimal]]:
    """(hour, dollars) of a rate from start to end, unrounded; nothing when it never started."""
    while start is not None and start < end:
        edge = min(end, hour_of(start) + HOUR)
        yield hour_of(start), usd_per_hour * Decimal(str((edge - start).total_seconds())) / SECONDS_PER_HOUR
        start = edge
