"""Slack's slash command and buttons; and below /work our own hint that the outbox holds something to do now."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from typing import Any

import functions_framework
from flask import Request, Response
from flask.typing import ResponseReturnValue

from common import auth, bootstrap
from common.chatops import render
from common.ports import App
from common.web import problem, slack_inbox
from common.workflows import outbox

ANSWER_WITHIN_S = 2.5
"""Slack waits 3 s; what takes longer (the store does not answer) goes on, and its answer comes by the response_url."""
THREADS = 16
SLOW = render.problem("this takes longer than usual; if no answer follows within a minute, please try again")

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="slack")


@functions_framework.http
def slack(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    if request.path.rstrip("/").endswith("/work"):
        return problem.answered(app, lambda: _work(app, request))
    return problem.answered(app, lambda: _answered(app, request, ANSWER_WITHIN_S))


def _answered(app: App, request: Request, within_s: float) -> Response:
    headers = {name.lower(): value for name, value in request.headers.items()}
    answering = _threads.submit(slack_inbox.answer, app, headers, request.get_data(cache=True))
    try:
        told: dict[str, Any] = answering.result(within_s)
    except TooLate:
        app.log("slack_slow", within_s=within_s)
        told = {**SLOW, "response_type": "ephemeral"}
    return Response(json.dumps(told) if told else "", 200, mimetype="application/json")


def _work(app: App, request: Request) -> ResponseReturnValue:
    """Whoever sent it did not wait for the answer: this invocation has the time that the outbox needs."""
    from common.web import slack_outbox  # all workflows: 0.3 s that a cold start has no use for before its first answer

    token = auth.bearer(request.headers.get("Authorization"))
    auth.check_outbox(token, secret=app.settings.jwt_secret, now=app.clock())
    outbox.follow(app, time.sleep, slack_outbox.ATTEMPTS)
    return "{}", 200, {"Content-Type": "application/json"}
