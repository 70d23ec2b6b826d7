"""Every call to a marketplace goes through here: it takes a token first, or is not made and raises `Throttled`.

The buckets stand in the store, so that all functions and jobs keep the vendor's limits together. Nothing waits here:
who has no turn writes down when it asks again, and a later step does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from common.domain.offer import Offer, Survey, Wanted
from common.domain.pacing import Bucket, Call, Limit, Priority
from common.errors import Exists, MarketSilent, NotFound, SettingError, Stale, Throttled
from common.ports import Announcing, App, Charge, Doc, Launch, Listed, Market
from common.records import dump, record_of

T = TypeVar("T")
WRITE_ATTEMPTS = 5
CONTENDED_RETRY_S = 1.0
SILENCES_MAX = 2
"""So many calls of one run a market may let time out; a single one may have been an accident of the way."""
SILENT_RETRY_S = 55.0
"""Longer than another invocation follows an instance, which would only wait in vain for the same market; shorter than
the minute after which the next run asks again."""


def market(app: App, provider: str, priority: Priority, *, who: str) -> Paced:
    """The account's marketplace as one caller may use it. `who` waits for turns: a label, an instance's key, a job."""
    if provider not in app.sellers:
        raise SettingError(f"no credentials for {provider}: set {provider.upper()}_API_KEY")
    return Paced(app, app.seller(provider), priority, who)


def patient(app: App) -> App:
    """The app for one run through many instances: a market that hangs costs it SILENCES_MAX timeouts, not one each."""
    return replace(app, silences=Counter())


def given_up(app: App) -> set[str]:
    """Markets that this run calls no more. Nothing follows from that but that they gave no information."""
    return {name for name, times in (app.silences or {}).items() if times >= SILENCES_MAX}


def announcing(app: App, provider: str) -> Announcing:
    """The account's webhooks, for which the vendors state no limit. Raises `NotFound` where there are none."""
    market = app.markets.get(provider)
    if not isinstance(market, Announcing):
        raise NotFound(f"there is no market {provider!r} that announces anything")
    return market


@dataclass(frozen=True)
class Paced:
    """`ports.Market` for one caller. Create and destroy are announced in the store between `take_turn` and the call."""

    app: App
    market: Market
    priority: Priority
    who: str

    @property
    def name(self) -> str:
        return self.market.name

    def search(self, wanted: Wanted) -> list[Offer]:
        return self._asked("search", lambda: self.market.search(wanted))

    def survey(self, gpu: str) -> Survey:
        return self._asked("search", lambda: self.market.survey(gpu))

    def list(self) -> Sequence[Listed]:
        return self._asked("list", self.market.list)

    def get(self, provider_id: str) -> Listed | None:
        return self._asked("get", lambda: self.market.get(provider_id))

    def credit_usd(self) -> str | None:
        return self._asked("credit", self.market.credit_usd)

    def charges(self, since: datetime, until: datetime) -> Sequence[Charge] | None:
        return self._asked("charges", lambda: self.market.charges(since, until))

    def create(self, offer: Offer, launch: Launch) -> str:
        """After `take_turn("create")`."""
        return self._heeded("create", lambda: self.market.create(offer, launch))

    def destroy(self, provider_id: str) -> bool:
        """After `take_turn("destroy")`; False = it was gone already."""
        return self._heeded("destroy", lambda: self.market.destroy(provider_id))

    def take_turn(self, call: Call) -> None:
        """A token for one call; raises `Throttled` when there is none, or the run gave the market up: the call must not
        be made."""
        if self.name in given_up(self.app):
            raise Throttled(f"{self.name} does not answer: {call} is left to a later run", SILENT_RETRY_S)
        limit = self.market.limits.get(call)
        if limit is None:
            return
        wait_s = _change(self, limit, lambda b, now: b.take(limit, who=self.who, priority=self.priority, now=now))
        if wait_s > 0:
            raise Throttled(f"{self.name}: {call} waits for its turn, about {wait_s:.0f} s", wait_s)

    def _asked(self, call: Call, ask: Callable[[], T]) -> T:
        self.take_turn(call)
        return self._heeded(call, ask)

    def _heeded(self, call: Call, ask: Callable[[], T]) -> T:
        """The vendor's own refusal counts more than our tokens."""
        try:
            return ask()
        except MarketSilent:
            if self.app.silences is not None:
                self.app.silences[self.name] += 1
            raise
        except Throttled as refused:
            if limit := self.market.limits.get(call):
                retry_after_s = refused.retry_after_s
                _change(self, limit, lambda b, now: (b.emptied(limit, retry_after_s, now), 0.0))
            raise


Change = Callable[[Bucket, datetime], tuple[Bucket, float]]


def _change(paced: Paced, limit: Limit, change: Change) -> float:
    """Read, decide, write by compare-and-set; who loses the race reads again. Returns what the change returns."""
    app = paced.app
    for _ in range(WRITE_ATTEMPTS):
        now = app.clock()
        doc, bucket = _read(app, paced.name, limit, now)
        changed, wait_s = change(bucket, now)
        try:
            if doc is None:
                app.store.create("pacing", _id(paced.name, limit), dump(changed))
            elif changed != bucket:
                app.store.cas(doc, dump(changed))
            return wait_s
        except (Stale, Exists):
            continue
    return CONTENDED_RETRY_S


def _read(app: App, provider: str, limit: Limit, now: datetime) -> tuple[Doc | None, Bucket]:
    doc = app.store.get("pacing", _id(provider, limit))
    return doc, record_of(doc, Bucket) if doc else Bucket.full(limit, now)


def _id(provider: str, limit: Limit) -> str:
    return f"{provider}.{limit.bucket}"
