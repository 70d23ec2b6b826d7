"""Webhook of hosts: a machine's first call; and below /advance our own hint that an instance's next steps are near."""

from __future__ import annotations

import time

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
    handle = _advance if request.path.rstrip("/").endswith("/advance") else _provision
    return problem.answered(app, lambda: handle(app, request))


def _provision(app: App, request: Request) -> ResponseReturnValue:
    call = problem.parsed(Boot, request)
    token = problem.token_of_host(app, request.headers.get("Authorization"))
    booted, rental = hosts.boot(app, call, token, app.clock())
    if rental and call.failed:
        lifecycle.hint(app, rental.instance_key)
    return (booted.model_dump_json() if booted else "{}", 200, {"Content-Type": "application/json"})


def _advance(app: App, request: Request) -> ResponseReturnValue:
    """Whoever sent it did not wait for the answer: this invocation has the time that the next steps need."""
    token = auth.bearer(request.headers.get("Authorization"))
    key = auth.key_to_advance(token, secret=app.settings.jwt_secret, now=app.clock())
    lifecycle.follow(app, key, time.sleep)
    return "{}", 200, {"Content-Type": "application/json"}
