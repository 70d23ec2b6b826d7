"""The ledger is what the providers billed: read from their charges, written once per (rental, kind, UTC hour)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.host import HostRecord
from common.domain.ledger import LedgerEntry, hour_of, to_micro
from common.domain.rental import Meter, Rental, RentalState
from common.errors import MarketError, Missing, Stale
from common.ports import App, Charge, Delete, Write, every
from common.records import Kept, dump, read


def run(app: App, now: datetime) -> int:
    """Settle the bills of released machines; returns how many rentals were settled for good."""
    unsettled = every(app.store, "rentals", [("settled", "==", False)])
    waiting = [Kept(doc, Rental.model_validate(doc.data)) for doc in unsettled]
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
    last_touched = max(rental.at, rental.destroy_called_at or rental.at)
    if now - last_touched < timedelta(seconds=app.settings.timing.settle_after_s):
        return False
    host = read(app, "hosts", rental.label, HostRecord)
    settled = rental.model_copy(update={"settled": True, "meter": _with_traffic(rental.meter, host)})
    # nobody reads the host's last words any more, and an idle one would be asked for for ever
    writes: list[Write] = [kept.becomes(settled), *([Delete(host.doc)] if host else [])]
    try:
        app.store.commit(writes)
    except (Stale, Missing):
        return False
    return True


def _with_traffic(meter: Meter, host: Kept[HostRecord] | None) -> Meter:
    """The bytes that the host counted itself, as it last reported them."""
    if host is None:
        return meter
    progress = host.value.progress
    traffic = {"uploaded_bytes": progress.uploaded_bytes, "downloaded_bytes": progress.downloaded_bytes}
    return meter.model_copy(update=traffic)


def entries_of(rental: Rental, charges: Sequence[Charge]) -> list[LedgerEntry]:
    """The provider's charges of one rental, rounded once per (kind, hour). Writing them again changes nothing."""
    sums: dict[tuple[str, datetime], Decimal] = defaultdict(Decimal)
    for charge in charges:
        # the label is the truth; an id was never heard of when the create's answer was lost and no listing came in time
        if charge.label == rental.label or (not charge.label and charge.provider_id == rental.provider_id):
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
