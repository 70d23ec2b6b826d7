"""What the account may spend, has spent, and will have spent."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from common.domain.account import Right
from common.domain.budget import Budget, Finding, Period, findings
from common.domain.model import Model
from common.domain.offer import Usd
from common.web.routes import Call, Route
from common.workflows import budgets


class BudgetIn(Model):
    """null = no cap."""

    model_config = ConfigDict(extra="forbid")

    usd_per_hour: Usd | None = Field(default=None, ge=0, le=1_000_000)
    usd_per_day: Usd | None = Field(default=None, ge=0, le=1_000_000)


class BudgetOut(Model):
    usd_per_hour: Usd | None
    usd_per_day: Usd | None
    burn_usd_per_hour: Usd
    """Of everything that runs or boots now."""
    hour_usd: Usd
    """Spent in this UTC hour."""
    day_usd: Usd
    predicted_hour_usd: Usd
    """At its end, when everything runs on."""
    predicted_day_usd: Usd
    findings: list[Finding]
    """Caps that are, or will be, broken."""


def show_budget(call: Call) -> BudgetOut:
    return _out(call, budgets.get(call.app, call.caller.account))


def put_budget(call: Call) -> BudgetOut:
    body: BudgetIn = call.body
    caps = {"usd_per_hour": body.usd_per_hour, "usd_per_day": body.usd_per_day}
    return _out(call, budgets.put(call.app, call.caller.account, **caps))


def _out(call: Call, budget: Budget) -> BudgetOut:
    spending = budgets.spent(call.app, call.caller.account, call.now)
    return BudgetOut(
        usd_per_hour=budget.usd_per_hour,
        usd_per_day=budget.usd_per_day,
        burn_usd_per_hour=spending.burn_usd_per_hour,
        hour_usd=spending.hour_usd,
        day_usd=spending.day_usd,
        predicted_hour_usd=spending.predicted(Period.HOUR, call.now),
        predicted_day_usd=spending.predicted(Period.DAY, call.now),
        findings=findings(budget, spending, call.now),
    )


ROUTES = (
    Route("GET", "/budget", show_budget, "Caps, spending and prediction of the account", BudgetOut, tag="budget"),
    Route("PUT", "/budget", put_budget, "Set the caps; a used up one hibernates everything", BudgetOut, body=BudgetIn, right=Right.MANAGE_USERS, tag="budget"),
)  # fmt: skip
