"""Prometheus scrapes here, with an API key as its bearer token; what it sees is that account's."""

from __future__ import annotations

import functions_framework
from flask import Request, Response
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.ports import App
from common.views import metrics as view
from common.web import problem
from common.web.routes import caller_of


@functions_framework.http
def metrics(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _scraped(app, request))


def _scraped(app: App, request: Request) -> ResponseReturnValue:
    now = app.clock()
    caller = caller_of(app, request, now)
    return Response(view.exposition(app, caller.account, now), content_type=view.CONTENT_TYPE)
