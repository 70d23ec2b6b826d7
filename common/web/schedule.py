"""A job's request: only the scheduler may make it, and when it ran and how it ended is noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Request
from flask.typing import ResponseReturnValue

from common.ports import App
from common.web import problem
from common.workflows import doctor


def answered(app: App, request: Request, job: str, run: Callable[[App], dict[str, Any]]) -> ResponseReturnValue:
    """`run` gives a summary for the log. Whatever it raises becomes an answer."""
    return problem.answered(app, lambda: _ran(app, request, job, run))


def _ran(app: App, request: Request, job: str, run: Callable[[App], dict[str, Any]]) -> dict[str, Any]:
    problem.only_the_scheduler(app, request)
    began = app.clock()
    try:
        summary = run(app)
    except Exception as error:
        doctor.ran(app, job, began, failure=f"{type(error).__name__}: {error}"[:300])
        raise
    doctor.ran(app, job, began)
    app.log(job, **summary)
    return summary
