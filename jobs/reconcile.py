"""Every minute: the truth. Listing against records, every active instance advanced, released machines settled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
from common.workflows import addresses, budgets, hibernate, lifecycle, outbox, pacing, settle, sweep
from common.workflows.terminate import keys_due_for_purge

ALL_RENTALS_RUNS = 10
ALL_INSTANCES_RUNS = 60
"""After so many runs all rentals that may cost money, all active instances are looked at, whether or not something
seems due. Between them: what is restless, what the listing or a silence says something about, and what hosts report,
who say their news again until it was heeded. A run that does not come to its end has looked at nothing; one whose time
did not suffice for all instances is gone on with by the next."""
ADVANCE_FOR = timedelta(seconds=75)
"""After so long of one run no further instance is begun: what two calls of a market that hangs take, and a quarter of
a minute for everybody else. Bills, the note and the outbox come after them, and the next listing after those."""
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
    stopped_at: str = ""
    """The key with which the last run's time was over, or with which it gave a market up: the next begins behind it."""
    round_at: datetime | None = None
    """When the look at all active instances began that is not at its end yet."""


@dataclass(frozen=True)
class Round:
    """What became of one run's instances."""

    failed: int
    stopped_at: str
    """As in `Looks`; empty = all were advanced, and no market was given up."""
    is_whole: bool
    """Is everybody advanced who was due, with the runs before it that this one goes on with?"""
    unforeseen: Exception | None = None
    """What no instance should end with. The run raises it when everybody else has had their turn."""


@functions_framework.http
def reconcile(request: Request) -> ResponseReturnValue:
    return schedule.answered(bootstrap.app(asks_markets=True), request, "reconcile", run)


def run(app: App) -> dict[str, object]:
    """One pass; a part that fails is logged and the others go on."""
    app, began_at, looks = pacing.patient(app), app.clock(), _looks(app)
    has_all = _is_due(app, looks.rentals_at, ALL_RENTALS_RUNS) or _is_owed(app, looks)
    has_all_instances = _is_due(app, looks.instances_at, ALL_INSTANCES_RUNS)
    before = unsettled_rentals(app) if has_all else restless_rentals(app)
    swept = sweep.run(app, app.clock(), before=before)
    doomed = lifecycle.save_credit(app, [kept.value for kept in before.values()] if has_all else None)
    stopped = _enforce_budgets(app)
    keys = _keys(app, swept, before, has_all=has_all_instances)
    is_fresh = has_all_instances and looks.round_at is None
    done = _advance(pacing.patient(app), keys, "" if is_fresh else looks.stopped_at)
    settled = settle.run(app, before.values(), app.clock())
    freed = addresses.sweep(app, app.clock()) if has_all else []
    noted: dict[str, object] = {"stopped_at": done.stopped_at}
    noted |= _looked_at_rentals(looks, began_at, swept.unknown) if has_all else {}
    noted |= _looked_at_instances(looks, began_at, done) if has_all_instances else {}
    _note(app, looks, looks.model_copy(update=noted))
    told = outbox.drain(app, app.clock(), {**outbox.WEBHOOKS, TARGET: _to_slack})
    if outbox.next_due(app, app.clock() + timedelta(seconds=outbox.FOLLOW_S)):
        app.nudge_outbox()
    if done.unforeseen:
        raise done.unforeseen
    counts: dict[str, object] = {"addresses": freed} if freed else {}
    counts |= {"instances": len(keys), "failed": done.failed, "settled": settled, "out_of_credit": len(doomed)}
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


def _looked_at_rentals(looks: Looks, at: datetime, unanswered: list[str]) -> dict[str, object]:
    since = looks.unanswered_since if looks.unanswered == tuple(unanswered) else at
    return {"rentals_at": at, "unanswered": tuple(unanswered), "unanswered_since": since if unanswered else None}


def _looked_at_instances(looks: Looks, at: datetime, done: Round) -> dict[str, object]:
    """A look is as old as its first run."""
    since = looks.round_at or at
    return {"instances_at": since, "round_at": None} if done.is_whole else {"round_at": since}


def _note(app: App, before: Looks, looks: Looks) -> None:
    """Blind: should a run beside this one undo it, the next look at all comes sooner, or in its turn."""
    if looks != before:
        app.store.put("runs", LOOKS, dump(looks))


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


def _advance(app: App, keys: Collection[str], after: str) -> Round:
    """Round the circle of keys from behind `after`, as far as the time goes: nobody is passed over twice, and the first
    one, for whom every market is asked, is another one in each run that does not reach them all."""
    until, failed, last, given_up_at = app.clock() + ADVANCE_FOR, 0, after, ""
    unforeseen: Exception | None = None
    for key in sorted(keys, key=lambda key: (key <= after, key)):
        if app.clock() > until:
            app.log("advance_cut_short", instances=len(keys), after=after, stopped_at=last)
            stopped_at = given_up_at or last
            return Round(failed, stopped_at, is_whole=stopped_at <= after, unforeseen=unforeseen)
        error = _advanced(app, key)
        failed += error is not None
        if not isinstance(error, DumontError):
            unforeseen = unforeseen or error
        last = key
        if not given_up_at and pacing.given_up(app):
            given_up_at = key
    return Round(failed, given_up_at, is_whole=True, unforeseen=unforeseen)


def _advanced(app: App, key: str) -> Exception | None:
    """What it failed with."""
    try:
        lifecycle.push(app, key)
    except Exception as error:  # noqa: BLE001 - one instance's is not everybody's: they bill, and wait for their turn
        app.log("advance_failed", key=key, error=str(error) if isinstance(error, DumontError) else repr(error))
        return error
    return None
