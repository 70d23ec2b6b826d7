"""Webhook of hosts: a machine's first call, and the "look now" hint after a report."""

from __future__ import annotations

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import auth, bootstrap
from common.domain.host import Boot
from common.ports import App
from common.web import problem
from common.workflows import hosts, lifecycle


@functions_framework.http
def provision(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _provision(app, request))


def _provision(app: App, request: Request) -> ResponseReturnValue:
    call = problem.parsed(Boot, request)
    token = auth.bearer(request.headers.get("Authorization"))
    booted, rental = hosts.boot(app, call, token, app.clock())
    if rental and call.failed:
        lifecycle.hint(app, rental.instance_key)
    return (booted.model_dump_json() if booted else "{}", 200, {"Content-Type": "application/json"})
