"""Every minute: the truth. Listing against records, every active instance advanced, released machines settled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.domain.rental import Rental, RentalState
from common.errors import DumontError
from common.ports import App, every
from common.records import Kept, load, unsettled
from common.web import problem, slack_outbox
from common.workflows import budgets, hibernate, lifecycle, outbox, settle, sweep
from common.workflows.terminate import keys_due_for_purge


@functions_framework.http
def reconcile(request: Request) -> ResponseReturnValue:
    app = bootstrap.app()
    return problem.answered(app, lambda: _reconcile(app, request))


def _reconcile(app: App, request: Request) -> ResponseReturnValue:
    problem.only_the_scheduler(app, request)
    summary = run(app)
    app.log("reconcile", **summary)
    return summary


def run(app: App) -> dict[str, object]:
    """One pass; a part that fails is logged and the others go on."""
    swept = sweep.run(app, app.clock())
    rentals = unsettled(app)
    doomed = lifecycle.save_credit(app, rentals)
    stopped = _enforce_budgets(app)
    keys = _keys(app, rentals)
    failed = [key for key in keys if not _advanced(app, key)]
    settled = settle.run(app, rentals, app.clock())
    told = outbox.drain(app, app.clock(), slack_outbox.ATTEMPTS)
    if outbox.next_due(app, app.clock() + timedelta(seconds=outbox.FOLLOW_S)):
        app.nudge_outbox()
    counts = {"instances": len(keys), "failed": len(failed), "settled": settled, "out_of_credit": len(doomed)}
    return {**swept.__dict__, **counts, "over_budget": stopped, **told}


def _enforce_budgets(app: App) -> int:
    """Hibernate, never kill, what an account can no longer pay for by its own cap; returns how many instances."""
    stopped = 0
    for key, reason in budgets.enforce(app, app.clock()):
        try:
            hibernate.request(app, load(app, key), reason=reason, now=app.clock())
            stopped += 1
        except DumontError as error:
            app.log("budget_hibernate_failed", key=key, error=str(error))
    return stopped


def _keys(app: App, rentals: Sequence[Kept[Rental]]) -> list[str]:
    """Active instances, those that still have a machine, and those whose snapshots' time is over."""
    active = [doc.id for doc in every(app.store, "instances", [("active", "==", True)])]
    standing = [kept.value for kept in rentals if kept.value.state is not RentalState.RELEASED]
    with_machine = [rental.instance_key for rental in standing if rental.instance_key]
    return list(dict.fromkeys([*active, *with_machine, *keys_due_for_purge(app, app.clock())]))


def _advanced(app: App, key: str) -> bool:
    try:
        lifecycle.push(app, key)
    except DumontError as error:
        app.log("advance_failed", key=key, error=str(error))
        return False
    return True
