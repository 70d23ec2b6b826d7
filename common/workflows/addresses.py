"""The addresses of instances, with every listing of them: what nobody's record names is given back, and what an address
costs that no machine holds is entered into the ledger.

A machine's own address is part of its rate. A listing is made every ten minutes, and the ledger is exact to that; the
minutes for which Google keeps a stopped machine's address are not told apart from its use.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from common.domain.address import AddressRecord
from common.domain.instance import Instance
from common.domain.ledger import LedgerEntry
from common.errors import Exists, MarketError, Missing, Stale
from common.ports import Address, App, Cas, Create, Standbys, Write, every
from common.records import Kept, dump, read


def sweep(app: App, now: datetime) -> list[str]:
    """Listed first, then read. Returns the names of those that were given back."""
    if app.standbys is None:
        return []
    try:
        listed = [row for row in app.standbys.addresses() if row.name.startswith(f"dumont-{app.deployment().id}-")]
        enter_idle(app, listed, now)
        return [row.name for row in listed if _is_nobodys(app, row) and _given_back(app, app.standbys, row)]
    except MarketError as error:
        app.log("addresses_not_listed", error=str(error))
        return []


def _is_nobodys(app: App, row: Address) -> bool:
    """A return that failed after it was answered, or a reservation that was carried out late.

    One that this deployment never wrote down is another's.
    """
    if row.used_by is not None:
        return False
    owner = app.store.get("addresses", row.name)
    kept = read(app, "instances", owner.data["instance_key"], Instance) if owner else None
    return kept is not None and kept.value.address_region != row.region


def _given_back(app: App, standbys: Standbys, row: Address) -> bool:
    app.log("address_left_over", name=row.name, region=row.region)
    return standbys.release(row.name, row.region)


def enter_idle(app: App, listed: Iterable[Address], now: datetime) -> None:
    """`listed` = all of this deployment, as they stand now."""
    idle = {row.name for row in listed if row.used_by is None}
    docs = {doc.id: doc for doc in every(app.store, "addresses", [("is_idle", "==", True)])}
    known = {name: Kept(doc, AddressRecord.model_validate(doc.data)) for name, doc in docs.items()}
    for name in sorted(idle - set(known)):
        if kept := read(app, "addresses", name, AddressRecord):
            _commit(app, [Cas(kept.doc, dump(kept.value.entered(now, still_idle=True)))])
    for name, kept in known.items():
        if kept.value.is_due(now, still_idle=name in idle):
            entries = kept.value.entries(name, now, "gcp")
            sum_micro = sum(entry.micro_usd for entry in entries)
            entered = kept.value.entered(now, still_idle=name in idle, micro_usd=sum_micro)
            _commit(app, [kept.becomes(entered), *(_added(app, entry) for entry in entries)])


def _added(app: App, entry: LedgerEntry) -> Write:
    """To what the ledger says of this hour already. Guarded by its document, as the record is: nothing counts twice."""
    doc = app.store.get("ledger", entry.id)
    if doc is None:
        return Create("ledger", entry.id, dump(entry))
    before = LedgerEntry.model_validate(doc.data)
    return Cas(doc, dump(before.model_copy(update={"micro_usd": before.micro_usd + entry.micro_usd})))


def _commit(app: App, writes: list[Write]) -> None:
    try:
        app.store.commit(writes)
    except (Exists, Missing, Stale):
        return  # another pass is at it
