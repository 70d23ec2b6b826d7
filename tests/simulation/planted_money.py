"""Broken replacements around bills, meters and prices: see `planted`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from common.domain.ledger import LedgerEntry
from common.domain.rental import Rental
from common.errors import Stale
from common.ports import App, Listed
from common.workflows import settle


def settle_at_once(original: Any) -> Any:
    def close(app: App, kept: Any, charges: Any, now: Any) -> bool:
        for entry in settle.entries_of(kept.value, charges):
            app.store.put("ledger", entry.id, settle.dump(entry))
        try:
            app.store.cas(kept.doc, settle.dump(kept.value.model_copy(update={"settled": True})))
        except Stale:
            return False
        return True

    return close


def gone_without_proof(original: Any) -> Any:
    return lambda app, market, rental: False


def bill_of_ids_alone(original: Any) -> Any:
    return lambda rental, charges: original(rental, charges and [replace(charge, label="") for charge in charges])


def bill_counted_twice(original: Any) -> Any:
    def entries(rental: Any, charges: Any) -> list[LedgerEntry]:
        return list(original(rental, charges and [*charges, *charges[:1]]))

    return entries


def bill_stays_closed(original: Any) -> Any:
    def destroy(app: App, kept: Any, provider_id: str, now: Any) -> None:
        if kept.value.settled:
            app.markets[kept.value.provider].destroy(provider_id)
        else:
            original(app, kept, provider_id, now)

    return destroy


def any_price(original: Any) -> Any:
    def price(value: Any) -> Decimal:
        return Decimal(str(value)) if not isinstance(value, str) else Decimal("NaN")

    return price


def metered_when_heard(original: Any) -> Any:
    """Only the machine's own first word begins its meter."""

    def looked_at(rental: Rental, row: Listed, now: datetime) -> Rental:
        seen: Rental = original(rental, row, now)
        return seen.model_copy(update={"meter": rental.meter})

    return looked_at
