"""The money left on each marketplace account, read every minute; what must hibernate before it is gone."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.credit import Level, Runway, runway_of
from common.domain.outbox import Kind
from common.domain.pacing import Priority
from common.domain.rental import Rental, RentalState
from common.errors import Exists, MarketError, Stale
from common.ports import App, Create, Write
from common.records import Kept, dump, operator_of, read, unsettled_rentals
from common.workflows import pacing
from common.workflows.outbox import tell

WRITTEN_EVERY = timedelta(minutes=15)
"""A runway that is fine and stays so."""
BURN_MARGIN = 2
"""Between two passes that read all rentals the burn may have grown so many times before that is noticed late."""


def judge(app: App, unsettled: Collection[Rental] | None, now: datetime) -> dict[str, str]:
    """Keys of the instances that must hibernate, with the reason. A market that does not tell decides nothing.

    `unsettled` = all rentals that may cost money, where they have been read. Else the burn of the last reading counts,
    and they are read only when by that the money may be at its end, or its level has changed.
    """
    doomed: dict[str, str] = {}
    for name in app.markets:
        runway, live = _read(app, name, unsettled, now)
        if runway and runway.must_hibernate:
            why = f"the credit at {name} lasts {runway.hours_left:.1f} h"
            serving = [rental for rental in live if rental.state is RentalState.SERVING]
            doomed.update({rental.instance_key: why for rental in serving if rental.instance_key})
    return doomed


def _read(
    app: App, name: str, unsettled: Collection[Rental] | None, now: datetime
) -> tuple[Runway | None, list[Rental]]:
    """The runway, and the rentals that burn it (none where they need not be known)."""
    try:
        credit_usd = pacing.market(app, name, Priority.POLL, who="credit").credit_usd()
    except MarketError as error:
        app.log("credit_unknown", market=name, error=str(error))
        return None, []
    if credit_usd is None:
        return None, []
    kept = read(app, "runways", name, Runway)
    before = kept.value if kept else None

    def runway_at(burn_usd_per_hour: Decimal) -> Runway:
        return runway_of(
            name,
            credit_usd=Decimal(credit_usd),
            burn_usd_per_hour=burn_usd_per_hour,
            warn_below_h=app.settings.credit_warn_below_h,
            hibernate_below_h=app.settings.credit_hibernate_below_h,
            before=before,
            now=now,
        )

    if unsettled is None and before and before.burn_usd_per_hour:
        estimate = runway_at(before.burn_usd_per_hour)
        is_far = runway_at(before.burn_usd_per_hour * BURN_MARGIN).level is not Level.CRITICAL
        if is_far and estimate.level is before.level:
            return estimate, []
    if unsettled is None:
        unsettled = [kept.value for kept in unsettled_rentals(app).values()]
    live = [rental for rental in unsettled if rental.provider == name and rental.is_live and rental.create_called_at]
    runway = runway_at(sum((rental.offer.usd_per_hour(rental.disk_gb) for rental in live), Decimal(0)))
    is_new = before is None or runway.burn_usd_per_hour != before.burn_usd_per_hour or now - before.at >= WRITTEN_EVERY
    if is_new or runway.readings == 1 or runway.level is not Level.FINE:
        _save(app, kept, runway, now)
    return runway, live


def _save(app: App, kept: Kept[Runway] | None, runway: Runway, now: datetime) -> None:
    """Who runs the deployment hears of every change for the worse, in the commit that records it."""
    record = kept.becomes(runway) if kept else Create("runways", runway.market, dump(runway))
    writes: list[Write] = [record]
    if runway.readings == 1 and runway.level is not Level.FINE and (account := operator_of(app.store)):
        text = f"the credit at {runway.market} lasts {runway.hours_left:.1f} h at the present burn"
        writes += tell(app, account, Kind.CREDIT_LOW, {"market": runway.market, "text": text}, now)
    try:
        app.store.commit(writes)
    except (Stale, Exists):
        app.log("runway_stale", market=runway.market)  # another run read it at the same time
