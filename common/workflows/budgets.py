"""Budgets of accounts: refused before a start, warned of when predicted, enforced by hibernation, never by a kill."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

from common.domain.budget import Budget, Finding, Level, Period, Spending, findings, refusal, spending
from common.domain.instance import Want
from common.domain.ledger import LedgerEntry
from common.domain.outbox import Kind
from common.domain.rental import Rental
from common.errors import BudgetExceeded, Exists, Missing, Stale
from common.ports import App, Write, every
from common.records import Kept, dump, read, record_of
from common.workflows.outbox import tell


def check(app: App, account: str, *, usd_per_hour: Decimal, now: datetime) -> None:
    """May a machine of that price start for this account? Raises `BudgetExceeded`."""
    kept = read(app, "budgets", account, Budget)
    if kept is None:
        return
    why = refusal(kept.value, spent(app, account, now), usd_per_hour, now)
    if why:
        raise BudgetExceeded(why)


def last_price(app: App, key: str) -> Decimal:
    """USD per hour of the instance's newest GPU: what waking it will cost, as far as we know. 0 = never had one.

    Not of its standby, which is rented after the GPU, and bills on while the instance sleeps.
    """
    rentals = [record_of(doc, Rental) for doc in every(app.store, "rentals", [("instance_key", "==", key)])]
    gpus = [rental for rental in rentals if not rental.is_standby]
    newest = max(gpus, key=lambda rental: rental.created_at, default=None)
    return newest.offer.usd_per_hour(newest.disk_gb) if newest else Decimal(0)


def put(app: App, account: str, *, usd_per_hour: Decimal | None, usd_per_day: Decimal | None) -> Budget:
    """Set the caps; what was warned of under other caps is forgotten."""
    wanted = Budget(account=account, usd_per_hour=usd_per_hour, usd_per_day=usd_per_day)
    app.store.put("budgets", account, dump(wanted))
    return wanted


def get(app: App, account: str) -> Budget:
    kept = read(app, "budgets", account, Budget)
    return kept.value if kept else Budget(account=account)


def spent(app: App, account: str, now: datetime) -> Spending:
    unsettled = every(app.store, "rentals", [("account", "==", account), ("settled", "==", False)])
    today = every(app.store, "ledger", [("account", "==", account), ("hour", ">=", Period.DAY.start(now))])
    return spending(
        [record_of(doc, Rental) for doc in unsettled],
        [record_of(doc, LedgerEntry) for doc in today],
        now,
    )


def enforce(app: App, now: datetime) -> Iterator[tuple[str, str]]:
    """(instance key, reason) of every instance to hibernate because its account's cap is used up.

    Warnings and breaches are told once per period, in the commit that notes them.
    """
    for doc in every(app.store, "budgets"):
        kept = Kept(doc, record_of(doc, Budget))
        found = findings(kept.value, spent(app, kept.value.account, now), now)
        _tell(app, kept, found, now)
        broken = [finding for finding in found if finding.level is Level.EXCEEDED]
        for key in _wanted_up(app, kept.value.account) if broken else ():
            yield key, f"the budget is used up: {broken[0].text}"


def _tell(app: App, kept: Kept[Budget], found: list[Finding], now: datetime) -> None:
    budget, account = kept.value, kept.value.account
    writes: list[Write] = []
    for finding in found:
        body = {"period": finding.period.value, "text": finding.text}
        if finding.level is Level.EXCEEDED and not budget.has_told(finding.period, now):
            budget = budget.telling(finding.period, now)
            writes += tell(app, account, Kind.BUDGET_EXCEEDED, body, now)
        elif finding.level is Level.WARNING and not budget.has_warned(finding.period, now):
            budget = budget.warning(finding.period, now)
            writes += tell(app, account, Kind.BUDGET_WARNING, body, now)
    if budget == kept.value:
        return
    for finding in found:
        app.log("budget", account=account, level=finding.level.value, text=finding.text)
    try:
        app.store.commit([kept.becomes(budget), *writes])
    except (Stale, Exists, Missing) as error:
        app.log("budget_stale", account=account, error=str(error))


def _wanted_up(app: App, account: str) -> list[str]:
    docs = every(app.store, "instances", [("account", "==", account)])
    return [doc.id for doc in docs if doc.data["want"] == Want.UP]
