"""Slack's slash command and buttons; and below /work our own hint that the outbox holds something to do now."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from typing import Any, Protocol, TypeAlias

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

Answer = dict[str, Any]


class Answering(Protocol):
    """An answer on its way; `result` raises `TooLate` when it is not there in time."""

    def result(self, timeout: float | None = None) -> Answer: ...


Submit: TypeAlias = Callable[[Callable[[], Answer]], Answering]
"""Begins it beside the invocation, which may end before it does."""

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="slack")


@functions_framework.http
def slack(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    if request.path.rstrip("/").endswith("/work"):
        return problem.answered(app, lambda: _work(app, request))
    return taken(app, request, _threads.submit)


def taken(app: App, request: Request, submit: Submit) -> ResponseReturnValue:
    """What Slack sent, answered in time whatever the store does."""
    return problem.answered(app, lambda: _answered(app, request, submit))


def _answered(app: App, request: Request, submit: Submit) -> Response:
    headers = {name.lower(): value for name, value in request.headers.items()}
    body = request.get_data(cache=True)
    answering = submit(lambda: slack_inbox.answer(app, headers, body))
    try:
        told = answering.result(ANSWER_WITHIN_S)
    except TooLate:
        app.log("slack_slow", within_s=ANSWER_WITHIN_S)
        told = {**SLOW, "response_type": "ephemeral"}
    return Response(json.dumps(told) if told else "", 200, mimetype="application/json")


def _work(app: App, request: Request) -> ResponseReturnValue:
    """Whoever sent it did not wait for the answer: this invocation has the time that the outbox needs."""
    from common.web import slack_outbox  # all workflows: 0.3 s that a cold start has no use for before its first answer

    token = auth.bearer(request.headers.get("Authorization"))
    auth.check_outbox(token, secret=app.settings.jwt_secret, now=app.clock())
    outbox.follow(app, time.sleep, slack_outbox.ATTEMPTS)
    return "{}", 200, {"Content-Type": "application/json"}
