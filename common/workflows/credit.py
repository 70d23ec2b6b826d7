"""The money left on each marketplace account, read every minute; what must hibernate before it is gone."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.credit import Level, Runway, runway_of
from common.domain.pacing import Priority
from common.domain.rental import Rental, RentalState
from common.errors import MarketError
from common.ports import App, every
from common.records import dump, read
from common.workflows import pacing

WRITTEN_EVERY = timedelta(minutes=15)
"""A runway that is fine and stays so."""


def judge(app: App, now: datetime) -> dict[str, str]:
    """Keys of the instances that must hibernate, with the reason. A market that does not tell decides nothing."""
    docs = every(app.store, "rentals", [("settled", "==", False)])
    live = [rental for doc in docs if (rental := Rental.model_validate(doc.data)).is_live and rental.create_called_at]
    doomed: dict[str, str] = {}
    for name in app.markets:
        runway = _read(app, name, [rental for rental in live if rental.provider == name], now)
        if runway and runway.must_hibernate:
            why = f"the credit at {name} lasts {runway.hours_left:.1f} h"
            serving = [rental for rental in live if rental.provider == name and rental.state is RentalState.SERVING]
            doomed.update({rental.instance_key: why for rental in serving if rental.instance_key})
    return doomed


def _read(app: App, name: str, live: list[Rental], now: datetime) -> Runway | None:
    try:
        credit_usd = pacing.market(app, name, Priority.POLL, who="credit").credit_usd()
    except MarketError as error:
        app.log("credit_unknown", market=name, error=str(error))
        return None
    if credit_usd is None:
        return None
    kept = read(app, "runways", name, Runway)
    before = kept.value if kept else None
    runway = runway_of(
        name,
        credit_usd=Decimal(credit_usd),
        burn_usd_per_hour=sum((rental.offer.usd_per_hour(rental.disk_gb) for rental in live), Decimal(0)),
        warn_below_h=app.settings.credit_warn_below_h,
        hibernate_below_h=app.settings.credit_hibernate_below_h,
        before=before,
        now=now,
    )
    if before is None or runway.level is not Level.FINE or before.level is not runway.level or _is_old(before, now):
        app.store.put("runways", name, dump(runway))
    if runway.level is not Level.FINE:
        app.log("credit_low", market=name, level=runway.level.value, hours_left=runway.hours_left)
    return runway


def _is_old(before: Runway, now: datetime) -> bool:
    return now - before.at >= WRITTEN_EVERY
