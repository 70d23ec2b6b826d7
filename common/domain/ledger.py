"""What machines cost, in integer micro-dollars per (rental, kind, UTC hour)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

from common.domain.model import Model
from common.domain.rental import POOL

MICRO = Decimal(10**6)
HOUR = timedelta(hours=1)
SECONDS_PER_HOUR = Decimal(3600)
DIGEST_LENGTH = 24


class LedgerEntry(Model):
    """The document `ledger/<label>.<kind>.<hour>`, with `.pool` for what the warm pool pays."""

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
        of_pool = ".pool" if self.account == POOL else ""
        return f"{self.label}.{self.kind}.{self.hour:%Y%m%d%H}{of_pool}"

    def shared(self, *, ran_from: datetime, ran_until: datetime, assigned_at: datetime) -> list[LedgerEntry]:
        """A machine's cost before its assignment is the pool's, after it its owner's; together the same amount."""
        start, end = max(self.hour, ran_from), min(self.hour + HOUR, ran_until)
        before = min(max(assigned_at - start, timedelta(0)), max(end - start, timedelta(0)))
        share = Decimal(str(before / (end - start))) if end > start else Decimal(0)
        of_pool = int((self.micro_usd * share).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
        pool = self.model_copy(
            update={"account": POOL, "instance_id": None, "instance_key": None, "micro_usd": of_pool}
        )  # fmt: skip
        owners = self.model_copy(update={"micro_usd": self.micro_usd - of_pool})
        return [entry for entry in (pool, owners) if entry.micro_usd]


def spread(micro_usd: int, weights: Mapping[datetime, Decimal]) -> dict[datetime, int]:
    """An amount over hours by their weights (positive), each rounded half-even so that together they are the amount."""
    total, until, given = sum(weights.values()), Decimal(0), 0
    parts: dict[datetime, int] = {}
    for hour, weight in weights.items():
        until += weight
        taken = int((micro_usd * until / total).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))
        parts[hour], given = taken - given, taken
    return parts


def digest(entries: Iterable[LedgerEntry]) -> str | None:
    """The same for the same amounts of the same payers; None of no entries."""
    lines = "\n".join(sorted(f"{entry.id} {entry.account} {entry.micro_usd}" for entry in entries))
    return hashlib.sha256(lines.encode()).hexdigest()[:DIGEST_LENGTH] if lines else None


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
