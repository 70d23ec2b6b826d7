"""The live market is written down, look by look, and what it says of the hours to come is kept to be judged.

A run looks at GPUS_PER_RUN models of each marketplace. One look costs five reads and four writes, however many
machines it shows: the hour's quotes, the history by the hour, the outlook, the turn to search; and the coefficients are
read. At a run every five minutes and two marketplaces that is 6,600 reads and 4,600 writes a day: 0.18 USD a month at
regional prices. The first look of an hour takes 0.4 s of a CPU for 20 regions of 28 days, any other 0.01 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol, Self, TypeVar

from pydantic import ValidationError

from common.domain import survival
from common.domain.model import Model
from common.domain.offer import Survey
from common.domain.outlook import SURVIVAL_H, History, Outlook, look_ahead
from common.domain.pacing import Priority
from common.domain.quotes import GPUS_PER_RUN, RECORDED_GPUS, QuoteHour, due, hour_of
from common.domain.scores import brier
from common.domain.series import HOUR_S
from common.domain.survival import Coefficients, Place, Row
from common.errors import Exists, MarketError, QuotaExceeded, Stale, Throttled
from common.ports import App, Cas, Create, Data, Doc, Write, every, expiring
from common.records import dump
from common.workflows import pacing

REFIT_EVERY = timedelta(days=1)
FIT_SHARE = 0.8
"""Of the recorded hours; on the rest the new coefficients must be better than the present ones."""
LOST_AT_LEAST = 50
"""Windows that did not survive, in the part that is fitted on and in the part that judges: fewer prove nothing."""
PLACES_MAX = 100
"""That are fitted on, evenly chosen: measured, 100 regions of 28 days take about one second of a CPU."""
COEFFICIENTS = "survival"


class Seen(Model):
    """What one run did."""

    looked: list[str] = []
    skipped: list[str] = []
    """Looked at already in this run's time."""
    refused: list[str] = []
    """Marketplaces that gave no answer."""


class Refusal(Model):
    """The document `surveys/<provider>`: a quota that is used up is not asked again before it is a new one."""

    until: datetime
    why: str


def run(app: App, now: datetime) -> Seen:
    """One look at each model whose turn it is. What a marketplace refuses stays a gap."""
    seen = Seen()
    every_s = app.settings.timing.market_every_s
    slot = int(now.timestamp() // every_s)
    for provider in sorted(app.markets):
        if not _is_refused(app, provider, now):
            _look_at(app, provider, due(slot, RECORDED_GPUS, GPUS_PER_RUN), seen, now - timedelta(seconds=every_s / 2))
    return seen


def _look_at(app: App, provider: str, gpus: Sequence[str], seen: Seen, fresh_from: datetime) -> None:
    market = pacing.market(app, provider, Priority.RECORD, who="record_market")
    for gpu in gpus:
        outlook, doc = _read(app, "outlooks", Outlook(provider=provider, gpu=gpu))
        if outlook.looked_at and outlook.looked_at > fresh_from:
            seen.skipped.append(outlook.id)
            continue
        try:
            survey = market.survey(gpu)
        except QuotaExceeded as error:
            _refuse(app, provider, str(error), app.clock())
            seen.refused.append(provider)
            return
        except MarketError as error:
            app.log("survey_failed", market=provider, gpu=gpu, error=str(error))
            seen.refused.append(provider)
            if isinstance(error, Throttled):
                return
            continue
        if _record(app, outlook, doc, survey, app.clock()):
            seen.looked.append(outlook.id)


def _record(app: App, outlook: Outlook, doc: Doc | None, survey: Survey, now: datetime) -> bool:
    """All of it or nothing. False: another run wrote first, and its look counts."""
    provider, gpu = outlook.provider, outlook.gpu
    quotes, quotes_doc = _read(app, "quotes", QuoteHour(provider=provider, gpu=gpu, hour=hour_of(now)))
    history, history_doc = _read(app, "market_history", History(provider=provider, gpu=gpu))
    history = history.with_look(survey, now)
    timeout_s = app.settings.timing.boot_timeout_s
    ahead = look_ahead(outlook, history, survey, coefficients(app), boot_timeout_s=timeout_s, now=now)
    hour = quotes.with_look(survey, now)
    writes = [
        _write("quotes", quotes_doc, quotes.id, expiring("quotes", hour.packed(), now)),
        _write("market_history", history_doc, history.id, history.packed()),
        _write("outlooks", doc, ahead.id, ahead.packed()),
    ]
    try:
        app.store.commit(writes)
    except (Stale, Exists):
        return False
    return True


# --- the coefficients of survival


def coefficients(app: App) -> Coefficients:
    """Fitted on what this deployment has recorded, once that is better; until then those that came with the version."""
    doc = app.store.get("coefficients", COEFFICIENTS)
    return (_fitted(doc) if doc else None) or survival.shipped()


def _fitted(doc: Doc) -> Coefficients | None:
    """None: nothing better was found yet, or it was fitted on the features of another version."""
    try:
        return Coefficients.model_validate(doc.data["coefficients"])
    except ValidationError:
        return None


def refit(app: App, now: datetime) -> str | None:
    """Once a day: fitted anew on the recorded hours, and kept where it judges the newest of them better.

    Returns what came of it; None = not due.
    """
    doc = app.store.get("coefficients", COEFFICIENTS)
    if doc is not None and now - doc.data["tried_at"] < REFIT_EVERY:
        return None
    present = coefficients(app)
    histories = [History.unpacked(found.data) for found in every(app.store, "market_history")]
    fitted = refitted([place for history in histories for place in history.places()], present, now)
    kept = fitted or (_fitted(doc) if doc else None)
    tried = {"schema_version": 1, "tried_at": now, "coefficients": dump(kept) if kept else None}
    try:
        app.store.commit([_write("coefficients", doc, COEFFICIENTS, tried)])
    except (Stale, Exists):
        return None
    return f"fitted on {fitted.fitted_on}" if fitted else "the present coefficients stay"


def refitted(places: Sequence[Place], present: Coefficients, now: datetime) -> Coefficients | None:
    """Coefficients whose every model beats the present one on the newest hours; None = nothing is proven."""
    places = places[:: max(1, math.ceil(len(places) / PLACES_MAX))]
    models = [_better(places, present.model(h)) for h in SURVIVAL_H]
    if not places or not all(models):
        return None
    ours = {model.horizon_h: model for model in models if model}
    hours = sum(len(place.up) for place in places)
    return present.model_copy(
        update={
            "fitted_on": f"{len(places)} recorded regions, {hours} hours",
            "fitted_at": now.date().isoformat(),
            "models": tuple(ours.get(model.horizon_h, model) for model in present.models),
        }
    )


def _better(places: Sequence[Place], present: survival.Hazard) -> survival.Hazard | None:
    rows = [row for row in survival.rows(places, present.horizon_h) if row.survived is not None]
    if not rows:
        return None
    ticks = sorted(row.tick for row in rows)
    cut = ticks[int(len(ticks) * FIT_SHARE)]
    past = [row for row in rows if row.tick + present.horizon_h < cut]
    newest = [row for row in rows if row.tick >= cut]
    if min(_lost(past), _lost(newest)) < LOST_AT_LEAST:
        return None
    fitted = survival.fit(past, horizon_h=present.horizon_h, step_s=HOUR_S)
    return fitted if _brier(fitted, newest) < _brier(present, newest) else None


def _lost(rows: Sequence[Row]) -> int:
    return sum(row.survived is False for row in rows)


def _brier(model: survival.Hazard, rows: Sequence[Row]) -> float:
    return brier([(model.chance(row), bool(row.survived)) for row in rows])


# --- documents


class _Packed(Protocol):
    @property
    def id(self) -> str: ...

    @classmethod
    def unpacked(cls, data: Data) -> Self: ...


T = TypeVar("T", bound=_Packed)


def _read(app: App, collection: str, fresh: T) -> tuple[T, Doc | None]:
    """The document of that id, or the fresh one."""
    doc = app.store.get(collection, fresh.id)
    unpack: Callable[[Data], T] = type(fresh).unpacked
    return (unpack(doc.data) if doc else fresh), doc


def _write(collection: str, doc: Doc | None, id: str, data: Data) -> Write:
    return Cas(doc, data) if doc else Create(collection, id, data)


def _is_refused(app: App, provider: str, now: datetime) -> bool:
    doc = app.store.get("surveys", provider)
    return doc is not None and now < doc.data["until"]


def _refuse(app: App, provider: str, why: str, now: datetime) -> None:
    """Daily quotas begin anew at 00:00 UTC."""
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    app.log("survey_quota_used_up", market=provider, error=why, until=tomorrow)
    app.store.put("surveys", provider, dump(Refusal(until=tomorrow, why=why)))
