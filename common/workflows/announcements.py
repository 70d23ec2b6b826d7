"""What marketplaces announce by webhook: verified, deduplicated, and then only a reason to look now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from common.errors import BadRequest, Unauthenticated
from common.ports import App, MarketEvent, expiring
from common.workflows import pacing

EVENT_ID_MAX = 64
EVENT_TEXT_MAX = 500


def subscribe(app: App, name: str, now: datetime) -> str:
    """One webhook of the market to us; returns its URL. Asked again it changes nothing.

    One whose secret we do not have is of no use and is made anew. Raises `NotFound` for a market that has none.
    """
    market, url = pacing.announcing(app, name), f"{app.settings.url}/failover/{name}"
    doc = app.store.get("subscriptions", name)
    known = {subscription.id for subscription in market.subscriptions() if subscription.url == url}
    if doc and doc.data["url"] == url and doc.data["id"] in known:
        return url
    for id in known:
        market.unsubscribe(id)
    made = market.subscribe(url)
    app.store.put("subscriptions", name, {"id": made.id, "url": url, "secret": made.secret, "at": now})
    return url


def verified(app: App, name: str, headers: Mapping[str, str], body: bytes, now: datetime) -> MarketEvent | None:
    """One delivery, or None for one whose consequences were drawn before.

    Raises `NotFound`, `Unauthenticated` and `BadRequest`.
    """
    market, doc = pacing.announcing(app, name), app.store.get("subscriptions", name)
    if doc is None:
        raise Unauthenticated(f"nothing is subscribed at {name}")
    event = market.event(headers, body, secret=doc.data["secret"], now=now)
    if not event.id.replace("-", "").isalnum() or len(event.id) > EVENT_ID_MAX:
        raise BadRequest("this event's id is no id")
    return None if app.store.get("announcements", f"{name}.{event.id}") else event


def remember(app: App, name: str, event: MarketEvent, now: datetime) -> None:
    """Only when its consequences are drawn, so that the market's next try is not for nothing."""
    seen = {"kind": event.kind, "text": event.text[:EVENT_TEXT_MAX], "at": now}
    app.store.put("announcements", f"{name}.{event.id}", expiring("announcements", seen, now))
