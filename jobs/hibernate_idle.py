"""Every minute: which GPUs have been idle for their window? One indexed query; the idle clock runs in the agents."""

from __future__ import annotations

from datetime import timedelta

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.domain.host import HostRecord
from common.errors import DumontError
from common.ports import App, every
from common.records import Kept, load
from common.web import problem
from common.workflows import hibernate, lifecycle

SHORTEST_WINDOW_S = 5.0
"""The least `idle_for_s` an instance may ask for."""


@functions_framework.http
def hibernate_idle(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _hibernate_idle(app, request))


def _hibernate_idle(app: App, request: Request) -> ResponseReturnValue:
    problem.only_the_scheduler(app, request)
    summary = run(app)
    app.log("hibernate_idle", **summary)
    return summary


def run(app: App) -> dict[str, object]:
    """Ask once, then one workflow per idle instance."""
    before = app.clock() - timedelta(seconds=SHORTEST_WINDOW_S)
    idle = list(every(app.store, "hosts", [("idle_since", "<=", before)]))
    hosts = [Kept(doc, HostRecord.model_validate(doc.data)) for doc in idle]
    hibernated = [kept.value.instance_id for kept in hosts if _hibernated(app, kept)]
    return {"idle": len(hosts), "hibernated": hibernated}


def _hibernated(app: App, kept: Kept[HostRecord]) -> bool:
    """The wish stands only on the report that it was read from: a newer one may say that work has begun."""
    host = kept.value
    if host.instance_key is None:
        return False
    try:
        world = load(app, host.instance_key)
        now = app.clock()
        if not hibernate.wants_hibernation(app, world.instance.value, host, now):
            return False
        assert host.idle_since
        idle_for_s = (now - host.idle_since).total_seconds()
        reason = f"idle for {idle_for_s:.0f} s"
        hibernate.request(app, world, reason=reason, now=now, also=[kept.unchanged()])
        lifecycle.advance(app, host.instance_key)
    except DumontError as error:
        app.log("hibernate_failed", key=host.instance_key, error=str(error))
        return False
    return True
