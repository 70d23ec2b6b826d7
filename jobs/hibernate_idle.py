"""Every minute: which GPUs are idle? One indexed query; the idle clock runs in the agents. Warned, then frozen."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.domain.host import HostRecord
from common.errors import DumontError
from common.ports import App, every
from common.records import Kept, load, record_of
from common.web import schedule
from common.workflows import hibernate, lifecycle

SHORTEST_WAIT_S = 3.0
"""The least `idle_for_s` an instance may ask for is 5 s; its warning comes before the end."""


@functions_framework.http
def hibernate_idle(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(), request, "hibernate_idle", run)


def run(app: App) -> dict[str, object]:
    """Ask once, then one workflow per idle instance."""
    before = app.clock() - timedelta(seconds=SHORTEST_WAIT_S)
    idle = list(every(app.store, "hosts", [("idle_since", "<=", before)]))
    hosts = [Kept(doc, record_of(doc, HostRecord)) for doc in idle]
    done = {kept.value.instance_id: _judged(app, kept) for kept in hosts}
    stages = (Stage.WARNED, Stage.ENDED, Stage.NOTED)
    warned, hibernated, noted = ([id for id, what in done.items() if what is stage] for stage in stages)
    if warned:
        app.nudge_outbox()  # a warning that comes with the minute after it is none
    return {"idle": len(hosts), "warned": warned, "hibernated": hibernated, "shadow": noted}


class Stage(Enum):
    LEFT_ALONE = "left_alone"
    WARNED = "warned"
    ENDED = "ended"
    NOTED = "noted"
    """In the policy `shadow`."""


def _judged(app: App, kept: Kept[HostRecord]) -> Stage:
    key = kept.value.instance_key
    if key is None:
        return Stage.LEFT_ALONE
    try:
        return _act(app, kept, key)
    except DumontError as error:
        app.log("hibernate_failed", key=key, error=str(error))
        return Stage.LEFT_ALONE


def _act(app: App, kept: Kept[HostRecord], key: str) -> Stage:
    """The wish stands only on the report that it was read from: a newer one may say that work has begun."""
    host, world, now = kept.value, load(app, key), app.clock()
    if hibernate.wants_hibernation(app, world.instance.value, host, now):
        assert host.idle_since
        idle_for_s = (now - host.idle_since).total_seconds()
        reason = f"{hibernate.IDLE} for {idle_for_s:.0f} s"
        hibernate.request(app, world, reason=reason, now=now, also=[kept.unchanged()])
        lifecycle.advance(app, key)
        return Stage.ENDED
    if hibernate.wants_warning(app, world.instance.value, host, now):
        hibernate.warn(app, world, host, now)
        return Stage.WARNED
    if hibernate.wants_note(app, world.instance.value, host, now):
        hibernate.note(app, world, host, now)
        return Stage.NOTED
    return Stage.LEFT_ALONE
