"""GPU hosts report here; the reply carries their orders."""

from __future__ import annotations

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.domain.host import Heartbeat
from common.ports import App
from common.web import problem
from common.workflows import hosts, lifecycle


@functions_framework.http
def heartbeat(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _heartbeat(app, request))


def _heartbeat(app: App, request: Request) -> ResponseReturnValue:
    beat = problem.parsed(Heartbeat, request)
    token = problem.token_of_host(app, request.headers.get("Authorization"))
    reply, news = hosts.receive(app, beat, token, app.clock())
    if news:
        # the lifecycle looks at what the host said, and the host hears the outcome at once
        world = lifecycle.hint(app, news.rental.instance_key, news.instance)
        reply = hosts.answer(app, news, world, app.clock())
    return reply.model_dump_json(), 200, {"Content-Type": "application/json"}
