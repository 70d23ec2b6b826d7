"""Webhook of markets and hosts: something happened to a machine. A hint: it only makes us look now."""

from __future__ import annotations

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import auth, bootstrap
from common.domain.host import Notice
from common.domain.rental import Rental
from common.errors import Unauthenticated
from common.ports import App
from common.records import read
from common.web import problem
from common.workflows import lifecycle, sweep


@functions_framework.http
def failover(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _failover(app, request))


def _failover(app: App, request: Request) -> ResponseReturnValue:
    """A host's `notice` (it is being stopped): list the market, then look at its instance."""
    notice = problem.parsed(Notice, request)
    token = auth.bearer(request.headers.get("Authorization"))
    now = app.clock()
    label = auth.label_of_host(token, secret=app.settings.jwt_secret, now=now)
    if label != notice.label:
        raise Unauthenticated("this token is for another rental")
    sweep.run(app, now)
    kept = read(app, "rentals", label, Rental)
    if kept:
        lifecycle.hint(app, kept.value.instance_key)
    return "{}", 202, {"Content-Type": "application/json"}
