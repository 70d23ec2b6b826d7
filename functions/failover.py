"""Webhook of hosts, and below /<market> of marketplaces: something happened to a machine. A hint to look now."""

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
from common.workflows import hosts, lifecycle, sweep


@functions_framework.http
def failover(request: Request) -> ResponseReturnValue:
    app = bootstrap.app(asks_markets=True)
    market = request.path.strip("/").removeprefix("failover").strip("/")
    return problem.answered(app, lambda: _announced(app, market, request) if market else _noticed(app, request))


def _announced(app: App, market: str, request: Request) -> ResponseReturnValue:
    """A marketplace's signed event."""
    lifecycle.announced(app, market, request.headers, request.get_data(cache=True))
    return "", 204


def _noticed(app: App, request: Request) -> ResponseReturnValue:
    """A host's `notice`. Being stopped: list its market. A standby's claim: keep it. Then look at its instance."""
    notice = problem.parsed(Notice, request)
    token = problem.token_of_host(app, request.headers.get("Authorization"))
    now = app.clock()
    label = auth.label_of_host(token, secret=app.settings.jwt_secret, now=now)
    if label != notice.label:
        raise Unauthenticated("this token is for another rental")
    kept = read(app, "rentals", label, Rental)
    if kept and notice.claim is not None:
        hosts.note_claim(app, label, notice.claim)
        lifecycle.hint(app, kept.value.instance_key)
    elif kept:
        sweep.run(app, now, only=kept.value.provider)
        lifecycle.hint(app, kept.value.instance_key)
    return "{}", 202, {"Content-Type": "application/json"}
