"""What was spent, and what was not."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from common.domain.model import Model
from common.views import savings as view
from common.views.savings import SavingsOut
from common.web.routes import Call, Route


class SavingsQuery(Model):
    model_config = ConfigDict(extra="forbid")

    days: int = Field(default=7, ge=1, le=90)


def show_savings(call: Call) -> SavingsOut:
    return view.show(call.app, call.caller.account, days=call.query.days, now=call.now)


ROUTES = (
    Route("GET", "/savings", show_savings, "What was spent, and the hours not billed because hibernated", SavingsOut, query=SavingsQuery, tag="budget"),
)  # fmt: skip
