"""The ledger is what the providers billed: read from their charges, written once per (rental, kind, UTC hour).

Where a provider publishes no bill there is only our own meter, at the price that it stated for the machine, else at the
offer's; such entries say so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from common.domain.host import HostRecord
from common.domain.ledger import LedgerEntry, by_hour, hour_of, to_micro
from common.domain.pacing import Priority
from common.domain.rental import Meter, Rental, RentalState
from common.errors import Exists, MarketError, Missing, Stale
from common.ports import App, Charge, Delete, Write
from common.records import Kept, dump, read
from common.workflows import pacing

UNBILLED_TIMES = 10
"""A bill without a machine that ran by our own meter is waited for so many times as long as any other: the machine may
still run unseen, or its rows be late."""


def run(app: App, unsettled: Collection[Kept[Rental]], now: datetime) -> int:
    """Settle the bills of released machines; returns how many rentals were settled for good."""
    settled = 0
    for name in app.sellers:
        released = [k for k in unsettled if k.value.provider == name and k.value.state is RentalState.RELEASED]
        if not released:
            continue
        since = min(kept.value.created_at for kept in released) - timedelta(hours=1)
        try:
            charges = pacing.market(app, name, Priority.POLL, who="settle").charges(since, now + timedelta(hours=1))
        except MarketError as error:
            app.log("charges_failed", market=name, error=str(error))
            continue
        settled += sum(_settle(app, kept, charges, now) for kept in released)
    return settled


def _settle(app: App, kept: Kept[Rental], charges: Sequence[Charge] | None, now: datetime) -> bool:
    rental = kept.value
    entries = entries_of(rental, charges)
    try:
        news = [_enter(app, entry) for entry in _by_payer(rental, entries)]
    except (Exists, Stale, Missing):
        return False  # somebody else is at it: the next pass finds what was written
    if any(news):
        return False  # a bill that still moves is of a machine that still runs, whatever the listings say
    # one that went on after its destroy was listed, and destroyed again or put off, at most a reconcile before its end
    timing, ended_at = app.settings.timing, max(rental.at, rental.destroy_called_at or rental.at)
    final_after_s = timing.settle_after_s * (1 if entries or not _has_run(rental, ended_at) else UNBILLED_TIMES)
    if (now - max(ended_at, rental.not_before)).total_seconds() < final_after_s + timing.reconcile_every_s:
        return False
    host = read(app, "hosts", rental.label, HostRecord)
    # a destroy whose answer, or whose note, was lost left it open: a settled one runs no more
    meter = _with_traffic(rental.meter.ended(ended_at), host)
    settled = rental.model_copy(update={"settled": True, "meter": meter})
    # nobody reads the host's last words any more, and an idle one would be asked for for ever
    writes: list[Write] = [kept.becomes(settled), *([Delete(host.doc)] if host else [])]
    try:
        app.store.commit(writes)
    except (Stale, Missing):
        return False
    return True


def _has_run(rental: Rental, until: datetime) -> bool:
    """By our own meter, for something that a bill would show."""
    return any(to_micro(usd) for usd in rental.metered_usd(until).values())


def _enter(app: App, entry: LedgerEntry) -> bool:
    """False = it stood there already. Guarded: an older bill that is written late must not replace a newer one."""
    doc, data = app.store.get("ledger", entry.id), dump(entry)
    if doc is None:
        app.store.create("ledger", entry.id, data)
    elif doc.data != data:
        app.store.cas(doc, data)
    return doc is None or doc.data != data


def _by_payer(rental: Rental, entries: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """An assigned machine of the pool was paid by the pool first; its traffic is its owner's."""
    meter, assigned_at = rental.meter, rental.assigned_at
    spans = {"gpu": (meter.gpu_from, meter.gpu_until), "disk": (meter.disk_from, meter.disk_until)}
    if assigned_at is None:
        return list(entries)
    shared: list[LedgerEntry] = []
    for entry in entries:
        start, end = spans.get(entry.kind, (None, None))
        if start is None:
            shared.append(entry)
        else:
            shared += entry.shared(ran_from=start, ran_until=end or rental.at, assigned_at=assigned_at)
    return shared


def _with_traffic(meter: Meter, host: Kept[HostRecord] | None) -> Meter:
    """The bytes that the host counted itself, as it last reported them."""
    if host is None:
        return meter
    progress = host.value.progress
    traffic = {"uploaded_bytes": progress.uploaded_bytes, "downloaded_bytes": progress.downloaded_bytes}
    return meter.model_copy(update=traffic)


def entries_of(rental: Rental, charges: Sequence[Charge] | None) -> list[LedgerEntry]:
    """One rental's costs, rounded once per (kind, hour): the provider's charges, or computed where it has no bill.

    Writing them again changes nothing.
    """
    source: Literal["billed", "computed"] = "computed" if charges is None else "billed"
    sums = _computed(rental) if charges is None else _billed(rental, charges)
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
            source=source,
        )
        for (kind, hour), amount in sums.items()
    ]


def _billed(rental: Rental, charges: Sequence[Charge]) -> dict[tuple[str, datetime], Decimal]:
    sums: dict[tuple[str, datetime], Decimal] = defaultdict(Decimal)
    for charge in charges:
        # the label is the truth; the id is never heard of when the create's answer was lost and no listing came in time
        if charge.label == rental.label or (not charge.label and charge.provider_id == rental.provider_id):
            sums[charge.kind, hour_of(charge.start)] += Decimal(charge.amount_usd)
    return sums


def _computed(rental: Rental) -> dict[tuple[str, datetime], Decimal]:
    """Of a released rental. Bandwidth is not computed: no marketplace without a bill charges for it."""
    meter, disk_usd_per_hour = rental.meter, rental.offer.disk_usd_per_hour(rental.disk_gb)
    stated = rental.stated_usd_per_hour
    gpu_usd_per_hour = rental.offer.gpu_usd_per_hour if stated is None else max(stated - disk_usd_per_hour, Decimal(0))
    rates = {
        "gpu": (gpu_usd_per_hour, meter.gpu_from, rental.gpu_billed_until(rental.at)),
        "disk": (disk_usd_per_hour, meter.disk_from, rental.disk_billed_until(rental.at)),
    }
    return {
        (kind, hour): usd
        for kind, (usd_per_hour, start, end) in rates.items()
        for hour, usd in by_hour(usd_per_hour, start, end or rental.at)
    }
