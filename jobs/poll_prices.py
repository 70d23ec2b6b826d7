"""Every five minutes: the market as it is, written down; once a day what it taught about the survival of machines."""

from __future__ import annotations

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.ports import App
from common.web import schedule
from common.workflows import record_market


@functions_framework.http
def poll_prices(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(asks_markets=True), request, "poll_prices", run)


def run(app: App) -> dict[str, object]:
    seen = record_market.run(app, app.clock())
    return {**seen.model_dump(), "coefficients": record_market.refit(app, app.clock())}
