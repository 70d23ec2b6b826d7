"""The ledger is what the providers billed: read from their charges, written once per (rental, kind, UTC hour)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.host import HostRecord
from common.domain.ledger import LedgerEntry, hour_of, to_micro
from common.domain.rental import Meter, Rental, RentalState
from common.errors import MarketError, Stale
from common.ports import App, Charge
from common.records import Kept, dump, read


def run(app: App, now: datetime) -> int:
    """Settle the bills of released machines; returns how many rentals were settled for good."""
    docs = app.store.query("rentals", [("settled", "==", False)])
    waiting = [Kept(doc, Rental.model_validate(doc.data)) for doc in docs]
    settled = 0
    for name, market in app.markets.items():
        released = [k for k in waiting if k.value.provider == name and k.value.state is RentalState.RELEASED]
        if not released:
            continue
        since = min(kept.value.created_at for kept in released) - timedelta(hours=1)
        try:
            charges = market.charges(since, now + timedelta(hours=1))
        except MarketError as error:
            app.log("charges_failed", market=name, error=str(error))
            continue
        settled += sum(_settle(app, kept, charges, now) for kept in released)
    return settled


def _settle(app: App, kept: Kept[Rental], charges: Sequence[Charge], now: datetime) -> bool:
    rental = kept.value
    for entry in entries_of(rental, charges):
        app.store.put("ledger", entry.id, dump(entry))
    final = now - rental.at >= timedelta(seconds=app.settings.timing.settle_after_s)
    if final:
        settled = rental.model_copy(update={"settled": True, "meter": _with_traffic(app, rental)})
        try:
            app.store.cas(kept.doc, dump(settled))
        except Stale:
            return False
    return final


def _with_traffic(app: App, rental: Rental) -> Meter:
    """The bytes that the host counted itself, as it last reported them."""
    host = read(app, "hosts", rental.label, HostRecord)
    if host is None:
        return rental.meter
    progress = host.value.progress
    traffic = {"uploaded_bytes": progress.uploaded_bytes, "downloaded_bytes": progress.downloaded_bytes}
    return rental.meter.model_copy(update=traffic)


def entries_of(rental: Rental, charges: Sequence[Charge]) -> list[LedgerEntry]:
    """The provider's charges of one rental, rounded once per (kind, hour). Writing them again changes nothing."""
    sums: dict[tuple[str, datetime], Decimal] = defaultdict(Decimal)
    for charge in charges:
        if charge.provider_id == rental.provider_id:
            sums[charge.kind, hour_of(charge.start)] += Decimal(charge.amount_usd)
    return [
        LedgerEntry(
            account=rental.account,
            instance_id=rental.instance_id,
            instance_key=rental.instance_key,
            label=rental.label,
            provider=rental.provider,
            kind=kind,
            hour=hour,
            micro_usd=to_micro(amount),
        )
        for (kind, hour), amount in sums.items()
    ]
