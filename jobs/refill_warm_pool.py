"""Every minute: the warm pool is filled up, and what is lost, old or too much is let go."""

from __future__ import annotations

from typing import Any

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.ports import App
from common.web import schedule
from common.workflows import pacing, warm_pool


@functions_framework.http
def refill_warm_pool(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(), request, "refill_warm_pool", run)


def run(app: App) -> dict[str, Any]:
    """One pass over the pool, which ends also while a market hangs."""
    now = app.clock()
    return warm_pool.run(pacing.patient(app), now)
