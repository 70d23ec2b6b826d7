"""Every day: snapshots whose drill is due are read back on a machine of ours."""

from __future__ import annotations

from dataclasses import asdict

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.ports import App
from common.web import schedule
from common.workflows import drill


@functions_framework.http
def drill_snapshots(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(), request, "drill_snapshots", run)


def run(app: App) -> dict[str, object]:
    return asdict(drill.run(app, app.clock()))
