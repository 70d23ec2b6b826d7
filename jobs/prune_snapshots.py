"""Every hour: old snapshots go, and what no snapshot needs any more."""

from __future__ import annotations

from dataclasses import asdict

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.ports import App
from common.web import schedule
from common.workflows import prune


@functions_framework.http
def prune_snapshots(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(), request, "prune_snapshots", run)


def run(app: App) -> dict[str, object]:
    return asdict(prune.run(app, app.clock()))
