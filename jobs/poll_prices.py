"""Every five minutes: the market as it is, written down; once a day what it taught about the survival of machines."""

from __future__ import annotations

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.ports import App
from common.web import problem
from common.workflows import record_market


@functions_framework.http
def poll_prices(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _poll_prices(app, request))


def _poll_prices(app: App, request: Request) -> ResponseReturnValue:
    problem.only_the_scheduler(app, request)
    summary = run(app)
    app.log("poll_prices", **summary)
    return summary


def run(app: App) -> dict[str, object]:
    seen = record_market.run(app, app.clock())
    return {**seen.model_dump(), "coefficients": record_market.refit(app, app.clock())}
