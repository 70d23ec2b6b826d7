"""A contract's bill, second by second: exact per (kind, UTC hour), rounded once."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

MICRO = Decimal("0.000001")
HOUR = timedelta(hours=1)


@dataclass
class Bill:
    raw: dict[str, Decimal] = field(default_factory=dict)
    """Unrounded dollars per '<kind>/<hour>'."""

    def run(self, kind: str, usd_per_hour: Decimal, since: datetime, until: datetime) -> None:
        """Time at a rate, split at the hours so that each hour is rounded once."""
        while since < until:
            edge = min(until, hour_of(since) + HOUR)
            seconds = Decimal(str((edge - since).total_seconds()))
            self.add(kind, usd_per_hour / 3600 * seconds, since)
            since = edge

    def add(self, kind: str, usd: Decimal, at: datetime) -> None:
        key = f"{kind}/{hour_of(at):%Y%m%d%H}"
        self.raw[key] = self.raw.get(key, Decimal(0)) + usd

    def rounded(self) -> dict[tuple[str, datetime], Decimal]:
        """(kind, hour) -> dollars, half-even to micro-dollars; what rounds to nothing is not billed."""
        found: dict[tuple[str, datetime], Decimal] = {}
        for key, amount in self.raw.items():
            kind, _, hour = key.partition("/")
            if usd := amount.quantize(MICRO, rounding=ROUND_HALF_EVEN):
                found[kind, _named(hour)] = usd
        return found

    def totals(self) -> dict[str, Decimal]:
        """kind -> dollars."""
        totals: dict[str, Decimal] = {}
        for (kind, _), usd in self.rounded().items():
            totals[kind] = totals.get(kind, Decimal(0)) + usd
        return totals

    def to_json(self) -> dict[str, str]:
        return {key: str(usd) for key, usd in self.raw.items()}

    @classmethod
    def from_json(cls, plain: dict[str, str]) -> Bill:
        return cls({key: Decimal(usd) for key, usd in plain.items()})


@functools.lru_cache(10_000)
def _named(hour: str) -> datetime:
    return datetime.strptime(hour, "%Y%m%d%H").replace(tzinfo=UTC)


def hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
