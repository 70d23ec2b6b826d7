"""Every minute: the truth. Listing against records, every active instance advanced, released machines settled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import functions_framework
from flask import Request
from flask.typing import ResponseReturnValue

from common import bootstrap
from common.domain.model import Model
from common.domain.outbox import Message
from common.domain.rental import Rental, RentalState
from common.domain.slack import TARGET
from common.errors import DumontError
from common.ports import App, Where, every
from common.records import Kept, dump, load, read, restless_rentals, unsettled_rentals
from common.web import schedule
from common.workflows import addresses, budgets, hibernate, lifecycle, outbox, settle, sweep
from common.workflows.terminate import keys_due_for_purge

ALL_RENTALS_RUNS = 10
ALL_INSTANCES_RUNS = 60
"""After so many runs all rentals that may cost money, all active instances are looked at, whether or not something
seems due. Between them: what is restless, what the listing or a silence says something about, and what hosts report,
who say their news again until it was heeded. A run that does not come to its end has looked at nothing."""
LOOKS = "reconcile-looks"
OWED_FOR = timedelta(minutes=30)
"""A look at all rentals that a market did not answer is tried again every minute for so long: a machine that ended in
that silence is in no listing, and nobody else asks for it. Later ones come in their turn: each reads every rental."""


class Looks(Model):
    """The document `runs/reconcile-looks`: when the last runs that looked at everything began."""

    rentals_at: datetime | None = None
    instances_at: datetime | None = None
    unanswered: tuple[str, ...] = ()
    """Markets that did not answer the last look at all rentals, ..."""
    unanswered_since: datetime | None = None
    """... and since when."""


@functions_framework.http
def reconcile(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(asks_markets=True), request, "reconcile", run)


def run(app: App) -> dict[str, object]:
    """One pass; a part that fails is logged and the others go on."""
    began_at, looks = app.clock(), _looks(app)
    has_all = _is_due(app, looks.rentals_at, ALL_RENTALS_RUNS) or _is_owed(app, looks)
    has_all_instances = _is_due(app, looks.instances_at, ALL_INSTANCES_RUNS)
    before = unsettled_rentals(app) if has_all else restless_rentals(app)
    swept = sweep.run(app, app.clock(), before=before)
    doomed = lifecycle.save_credit(app, [kept.value for kept in before.values()] if has_all else None)
    stopped = _enforce_budgets(app)
    keys = _keys(app, swept, before, has_all=has_all_instances)
    failed = [key for key in keys if not _advanced(app, key)]
    settled = settle.run(app, before.values(), app.clock())
    freed = addresses.sweep(app, app.clock()) if has_all else []
    if has_all or has_all_instances:
        _note(app, looks, began_at, swept.unknown, rentals=has_all, instances=has_all_instances)
    told = outbox.drain(app, app.clock(), {**outbox.WEBHOOKS, TARGET: _to_slack})
    if outbox.next_due(app, app.clock() + timedelta(seconds=outbox.FOLLOW_S)):
        app.nudge_outbox()
    counts: dict[str, object] = {"addresses": freed} if freed else {}
    counts |= {"instances": len(keys), "failed": len(failed), "settled": settled, "out_of_credit": len(doomed)}
    return {**swept.__dict__, **counts, "over_budget": stopped, **told}


def _to_slack(app: App, message: Message) -> Message:
    """Loaded with the first message that waits for it: the whole API stands behind it, a fifth of a cold start."""
    from common.web import slack_outbox

    return slack_outbox.attempt(app, message)


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


def _looks(app: App) -> Looks:
    kept = read(app, "runs", LOOKS, Looks)
    return kept.value if kept else Looks()


def _is_due(app: App, last_at: datetime | None, runs: int) -> bool:
    """Half a run early, for no two begin exactly a minute apart."""
    every_s = (runs - 0.5) * app.settings.timing.reconcile_every_s
    return last_at is None or (app.clock() - last_at).total_seconds() >= every_s


def _is_owed(app: App, looks: Looks) -> bool:
    """Did the last look at all rentals go without a market's answer, not long ago?"""
    since = looks.unanswered_since
    return bool(looks.unanswered) and since is not None and app.clock() - since <= OWED_FOR


def _note(app: App, looks: Looks, at: datetime, unanswered: list[str], *, rentals: bool, instances: bool) -> None:
    """Blind: should a run beside this one undo it, the next look at all comes sooner, or in its turn."""
    new: dict[str, object] = {"instances_at": at} if instances else {}
    if rentals:
        since = looks.unanswered_since if looks.unanswered == tuple(unanswered) else at
        new |= {"rentals_at": at, "unanswered": tuple(unanswered), "unanswered_since": since if unanswered else None}
    app.store.put("runs", LOOKS, dump(looks.model_copy(update=new)))


def _keys(app: App, swept: sweep.Summary, before: Mapping[str, Kept[Rental]], *, has_all: bool) -> list[str]:
    """Instances for which something may be due, read with as few documents as that takes.

    One that runs as it should has nothing due before its host, its machine or its user says something new.
    """
    due: Where = ("active" if has_all else "restless", "==", True)
    keys = [
        *(doc.id for doc in every(app.store, "instances", [due])),
        *(kept.value.instance_key for kept in before.values() if _is_odd(kept.value)),
        *swept.keys,
        *keys_due_for_purge(app, app.clock()),
    ]
    return list(dict.fromkeys(key for key in keys if key))


def _is_odd(rental: Rental) -> bool:
    """Anything but a machine that serves and is heard, or one that is gone."""
    return rental.state is not RentalState.RELEASED and (
        rental.state is not RentalState.SERVING or rental.unreachable_at is not None
    )


def _advanced(app: App, key: str) -> bool:
    try:
        lifecycle.push(app, key)
    except DumontError as error:
        app.log("advance_failed", key=key, error=str(error))
        return False
    return True
