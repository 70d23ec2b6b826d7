"""The ledger is what the providers billed: read from their charges, kept per (rental, kind, UTC hour).

Where a provider publishes no bill there is only our own meter, at the price that it stated for the machine, else at the
offer's; such entries say so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from common.domain.host import HostRecord
from common.domain.ledger import LedgerEntry, by_hour, digest, hour_of, spread, to_micro
from common.domain.pacing import Priority
from common.domain.rental import Meter, Rental, RentalState
from common.errors import Exists, MarketError, Missing, Stale
from common.ports import MAX_WRITES_PER_COMMIT, App, Cas, Charge, Check, Create, Delete, Write, every
from common.records import Kept, dump, read
from common.workflows import pacing

UNBILLED_TIMES = 10
"""A bill without a machine that ran by our own meter is waited for so many times as long as any other: the machine may
still run unseen, or its rows be late."""
ENTRIES_PER_COMMIT = MAX_WRITES_PER_COMMIT - 1
"""Beside what guards them."""
COMMITS_PER_PASS = 100


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
    entries = _by_payer(rental, entries_of(rental, charges))
    if rental.booked != digest(entries):
        _book(app, kept, entries)
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


def _book(app: App, kept: Kept[Rental], entries: Sequence[LedgerEntry]) -> None:
    """Makes the ledger say so, in commits of which each may be the last; the next pass finds what was written.

    Whoever marked the rental last writes, and nobody beside: an older bill never replaces a newer one. A machine that
    ran for a year has ten thousands of hours, and takes some passes.
    """
    try:
        doc = app.store.cas(kept.doc, dump(kept.value.model_copy(update={"booked": ""})))
        owners = sum(entry.micro_usd for entry in entries if entry.account == kept.value.account)
        booked = kept.value.model_copy(update={"booked": digest(entries), "booked_micro_usd": owners})
        news = [*_news(app, kept.value.label, entries), Cas(doc, dump(booked))]
        for at in range(0, len(news), ENTRIES_PER_COMMIT)[:COMMITS_PER_PASS]:
            batch = news[at : at + ENTRIES_PER_COMMIT]
            app.store.commit(batch if batch[-1] is news[-1] else [Check(doc), *batch])
    except (Exists, Stale, Missing):
        return  # somebody else is at it


def _news(app: App, label: str, entries: Sequence[LedgerEntry]) -> Iterator[Write]:
    """What has to be written, changed or taken out, read after the rental was marked."""
    there = {doc.id: doc for doc in every(app.store, "ledger", [("label", "==", label)])}
    for entry in entries:
        doc, data = there.pop(entry.id, None), dump(entry)
        if doc is None:
            yield Create("ledger", entry.id, data)
        elif doc.data != data:
            yield Cas(doc, data)
    yield from map(Delete, there.values())


def _has_run(rental: Rental, until: datetime) -> bool:
    """By our own meter, for something that a bill would show."""
    return any(to_micro(usd) for usd in rental.metered_usd(until).values())


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
    """One released rental's costs per (kind, hour): the provider's charges, or computed where it has no bill."""
    source: Literal["billed", "computed"] = "computed" if charges is None else "billed"
    amounts = _computed(rental) if charges is None else _billed(rental, charges)
    return [
        LedgerEntry(
            account=rental.account,
            instance_id=rental.instance_id,
            instance_key=rental.instance_key,
            label=rental.label,
            provider=rental.provider,
            kind=kind,
            hour=hour,
            micro_usd=micro_usd,
            source=source,
        )
        for (kind, hour), micro_usd in amounts.items()
        if micro_usd
    ]


Amounts = dict[tuple[str, datetime], int]
"""(kind, hour) -> micro-dollars."""


def _billed(rental: Rental, charges: Sequence[Charge]) -> Amounts:
    """The bill says how much, to the micro-dollar; our meter says when: a bill counts in days, or in whole rentals."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for charge in charges:
        # the label is the truth; the id is never heard of when the create's answer was lost and no listing came in time
        if charge.label == rental.label or (not charge.label and charge.provider_id == rental.provider_id):
            sums[charge.kind] += Decimal(charge.amount_usd)
    return {
        (kind, hour): micro_usd
        for kind, usd in sums.items()
        for hour, micro_usd in spread(to_micro(usd), _hours(rental, kind)).items()
    }


def _hours(rental: Rental, kind: str) -> dict[datetime, Decimal]:
    """How much of each hour it ran, by our own meter: traffic goes with the machine, and what we never saw running ran
    as long as its record tells."""
    meter, gpu_until, disk_until = rental.meter, *_ends(rental)
    spans = [(meter.disk_from, disk_until), (rental.created_at, rental.at)]
    spans = [(meter.gpu_from, gpu_until), *spans] if kind == "gpu" else spans
    found = (dict(by_hour(Decimal(1), start, end)) for start, end in spans)
    return next(filter(None, found), {hour_of(rental.created_at): Decimal(1)})


def _computed(rental: Rental) -> Amounts:
    """Bandwidth is not computed: no marketplace without a bill charges for it. Rounded once per (kind, hour)."""
    meter, disk_usd_per_hour = rental.meter, rental.offer.disk_usd_per_hour(rental.disk_gb)
    stated, (gpu_until, disk_until) = rental.stated_usd_per_hour, _ends(rental)
    gpu_usd_per_hour = rental.offer.gpu_usd_per_hour if stated is None else max(stated - disk_usd_per_hour, Decimal(0))
    rates = {
        "gpu": (gpu_usd_per_hour, meter.gpu_from, gpu_until),
        "disk": (disk_usd_per_hour, meter.disk_from, disk_until),
    }
    return {
        (kind, hour): to_micro(usd)
        for kind, (usd_per_hour, start, end) in rates.items()
        for hour, usd in by_hour(usd_per_hour, start, end)
    }


def _ends(rental: Rental) -> tuple[datetime, datetime]:
    """Until when GPU and disk of a released rental billed."""
    return rental.gpu_billed_until(rental.at), rental.disk_billed_until(rental.at)
