"""The demo's money: our ledger and our own meter beside what the simulated markets billed, per (rental, kind)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from common.bootstrap import now
from common.domain.address import KIND as IDLE_ADDRESS
from common.domain.ledger import LedgerEntry, to_usd
from common.domain.rental import Rental
from common.domain.standby_price import ADDRESS_USD_PER_HOUR
from infra.demo.drive import Drive, check

EXACT_USD = Decimal("0.000001")
"""The ledger's own step."""
OPERATIONS_S = Decimal(2)
"""Nobody tells when Google's operations ended."""
MINUTE_OF_ADDRESS_USD = ADDRESS_USD_PER_HOUR["standard"] / 60
"""An address has no least of a minute, as its machine has."""
LISTING_S = Decimal(60)
"""Between two looks at what is rented, at the longest: the demo looks every 20 s, and a slow machine is late."""
ANSWER_S = Decimal(10)
"""Of a create, at the longest: a machine that is listed before it came is metered from the call."""
IDLE_TIMES = 2
"""An address is without a machine before its first one stands and after its last one is gone."""
BOOT_GB = Decimal("0.1")
"""What a machine fetches before its agent counts: the bundle (48 MB), and the same again for the probe of its line."""

Key = tuple[str, str]
"""(label of a rental, kind of cost)."""
Usd = dict[Key, Decimal]


@dataclass(frozen=True)
class Books:
    """USD per key."""

    ledger: Usd
    metered: Usd
    bill: Usd
    tolerance: Usd
    """Of the meter: a second at its rate, and what nobody could count yet."""
    computed: frozenset[Key]
    """Of those whose provider publishes no bill: the ledger is our own computation, beside the simulator's count."""
    untold: frozenset[Key]
    """The simulated Google bills machines, disks and addresses; traffic comes a day late on the real one's bill."""
    meters: Mapping[str, str] = field(default_factory=dict)
    """label -> when it ran by our own records, for who looks for what is wrong."""

    def compare(self) -> None:
        """Raises `CheckFailed` where the ledger is not the bill, or the meter is off by more than its tolerance."""
        for key in ({*self.bill, *self.ledger, *self.metered}) - self.untold:
            billed, slack = self.bill.get(key, Decimal(0)), self.tolerance.get(key, Decimal(0)) + EXACT_USD
            off = abs(self.ledger.get(key, Decimal(0)) - billed)
            check(
                off <= (slack if key in self.computed else 0), f"the ledger of {key} is not the bill: off by {off} USD"
            )
            off = abs(self.metered.get(key, Decimal(0)) - billed)
            check(off <= slack, f"metered {key}: off by {off} USD; {self.meters.get(key[0], 'no record')}")

    def totals(self) -> dict[str, str]:
        """What is published and what only we computed, in USD, each beside the market's own."""
        published = {"ledger_usd": self.ledger, "metered_usd": self.metered, "provider_usd": self.bill}
        unpublished = {"computed_usd": self.ledger, "unpublished_usd": self.bill}
        totals = {name: _total(table, set(table) - self.computed) for name, table in published.items()}
        return totals | {name: _total(table, set(table) & self.computed) for name, table in unpublished.items()}


def read(drive: Drive) -> Books:
    """What the records and the markets of this `dumont up` say now."""
    entries = [LedgerEntry.model_validate(data) for data in drive.records("ledger")]
    rentals = [Rental.model_validate(data) for data in drive.records("rentals")]
    metered = {(r.label, kind): usd for r in rentals for kind, usd in r.metered_usd(now()).items()}
    of_google = {rental.label for rental in rentals if rental.is_standby}
    ledger = _ledger(entries)
    bill = _bill(drive.in_world("GET", "/bills").json(), {rental.label for rental in rentals})
    idle = {key for key in {*ledger, *bill} if key[1] == IDLE_ADDRESS}
    tolerance = {(r.label, kind): usd for r in rentals for kind, usd in _tolerance(r).items()}
    return Books(
        ledger=ledger,
        metered=metered | {key: ledger.get(key, Decimal(0)) for key in idle},  # what is idle has no meter of its own
        bill=bill,
        tolerance=tolerance | dict.fromkeys(idle, IDLE_TIMES * LISTING_S * ADDRESS_USD_PER_HOUR["unused"] / 3600),
        computed=frozenset((entry.label, entry.kind) for entry in entries if entry.source == "computed") | idle,
        untold=frozenset(key for key in {*ledger, *metered} if key[0] in of_google and key[1].startswith("bandwidth")),
        meters={rental.label: str(rental.meter) for rental in rentals},
    )


def _ledger(entries: Iterable[LedgerEntry]) -> Usd:
    usd: Usd = defaultdict(Decimal)
    for entry in entries:
        usd[entry.label, entry.kind] += to_usd(entry.micro_usd)
    return {key: value for key, value in usd.items() if value}


def _bill(rows: Iterable[Mapping[str, Any]], known: set[str]) -> Usd:
    """The markets' own. Google's row of a machine's address is part of our rate for it; one without a machine has its
    own name."""
    bill: Usd = defaultdict(Decimal)
    for row in rows:
        label, kind = row["key"]
        bill[label, "gpu" if kind == IDLE_ADDRESS and label in known else kind] += Decimal(row["usd"])
    return dict(bill)


def _tolerance(rental: Rental) -> dict[str, Decimal]:
    """kind -> USD: so many seconds at its rate as nobody could tell us, and what nobody could count yet."""
    unsure_s = dict.fromkeys(rental.metered_usd(now()), Decimal(1))
    if rental.ready_at is None:  # what lost a race may have run, between two listings, before it said a word
        unsure_s["gpu"] += LISTING_S
    for kind in ("gpu", "disk"):
        if rental.meter.disk_from == rental.create_called_at:  # a listing came before the create's answer
            unsure_s[kind] += ANSWER_S
        if rental.is_standby:
            unsure_s[kind] += OPERATIONS_S
    usd = {kind: seconds * rental.usd_per_second(kind) for kind, seconds in unsure_s.items()}
    usd["bandwidth_down"] += rental.offer.download_usd_per_gb * BOOT_GB
    usd["gpu"] += MINUTE_OF_ADDRESS_USD if rental.is_standby else 0
    return usd


def _total(table: Usd, keys: Iterable[Key]) -> str:
    return str(round(sum((table.get(key, Decimal(0)) for key in keys), Decimal(0)), 6))
