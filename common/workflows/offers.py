"""What all marketplaces offer for a wish, cheapest first: searched in turn, remembered for seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from common.domain.offer import Offer, Wanted
from common.domain.pacing import Priority
from common.domain.ranking import IMAGE_GB, Load, Ranked, rank
from common.domain.spec import DEFAULT_IMAGE, Spec
from common.errors import MarketError, NoCredit, NoOffer, Throttled, UnknownGpu
from common.ports import App, expiring
from common.workflows import history, pacing

FRESH_FOR_S = 30.0
"""Searches are the scarcest calls (Vast.ai: ten a minute): the same wish is not searched twice within so long."""
FRESH_AGAIN_FOR_S = 5.0
"""For a further round, whose offers were gone, and for those who lost their machines in the same moment."""
STALE_FOR_S = 300.0
"""Who only looks gets an answer of this age when a search has no turn."""


def for_user(app: App, spec: Spec, now: datetime) -> list[Ranked]:
    """What a wish would find now, best first, blocked machines last.

    Raises `NoOffer`, `UnknownGpu` or `NoCredit` instead of an empty answer.
    """
    look = {"priority": Priority.POLL, "who": "offers"}
    found = ranked(app, spec, search(app, spec, **look), snapshot_gb=0.0, now=now)  # type: ignore[arg-type]
    if any(one.blocked_until is None for one in found):
        if not any(_may_have_credit(app, name) for name in {one.offer.provider for one in found}):
            raise NoCredit("the marketplace account has no credit left; add credit and try again")
        return found
    if not found and not search(app, Spec(gpu=spec.gpu), **look):  # type: ignore[arg-type]
        raise UnknownGpu(f"no marketplace offers a GPU called {spec.gpu!r}; see: dumont gpus list")
    raise NoOffer(no_offer_sentence(spec, blocked=len(found)))


def ranked(
    app: App,
    spec: Spec,
    found: Sequence[Offer],
    *,
    snapshot_gb: float,
    now: datetime,
    standby_region: str | None = None,
) -> list[Ranked]:
    """Offers with the parts of their price and wait, best first, blocked machines last."""
    load = Load(
        disk_gb=spec.disk_gb,
        image_gb=spec.image_gb or IMAGE_GB,
        snapshot_gb=snapshot_gb,
        has_standby=app.standbys is not None and spec.standby,
        standby_region=standby_region,
    )
    timeout_s = app.settings.timing.boot_timeout_s
    blocked = history.blocked(app, now)
    return rank(found, load, boot_timeout_s=timeout_s, blocked=blocked, country_of_ip=app.country_of_ip)


def search(app: App, spec: Spec, *, priority: Priority, who: str, fresh_for_s: float = FRESH_FOR_S) -> list[Offer]:
    """Offers of all marketplaces under the price cap, cheapest first.

    A marketplace that does not answer hides no other one's offers; when nothing else is found, its error is raised.
    """
    wanted = wanted_for(spec)
    found: list[Offer] = []
    failed: MarketError | None = None
    for name in app.markets:
        try:
            found += _of_one(app, name, wanted, priority, who, fresh_for_s)
        except MarketError as error:
            app.log("search_failed", market=name, error=str(error))
            failed = error
    if failed and not found:
        raise failed
    return sorted(found, key=lambda offer: offer.usd_per_hour(spec.disk_gb))


def wanted_for(spec: Spec) -> Wanted:
    return Wanted(
        gpu=spec.gpu,
        num_gpus=spec.num_gpus,
        disk_gb=spec.disk_gb,
        max_usd_per_hour=spec.max_usd_per_hour,
        regions=spec.regions,
        image_matters=spec.image != DEFAULT_IMAGE,
    )


def no_offer_sentence(spec: Spec, *, blocked: int) -> str:
    """`blocked` = offers that match but whose machines' history keeps them out."""
    if blocked:
        return f"all {blocked} offers that match are of machines blocked by their history; see: dumont machines history"
    cap = f" at up to {spec.max_usd_per_hour} USD/h" if spec.max_usd_per_hour else ""
    where = f" in {', '.join(spec.regions)}" if spec.regions else ""
    return f"no offer of {spec.num_gpus} x {spec.gpu}{where}{cap}; raise the cap, add regions or choose another GPU"


def _of_one(app: App, name: str, wanted: Wanted, priority: Priority, who: str, fresh_for_s: float) -> list[Offer]:
    id = f"{name}.{hashlib.sha256(wanted.model_dump_json().encode()).hexdigest()[:16]}"
    at, remembered = _remembered(app, id)
    now = app.clock()
    if at is not None and now - at < timedelta(seconds=fresh_for_s):
        return remembered
    try:
        found = pacing.market(app, name, priority, who=who).search(wanted)
    except Throttled:
        if at is not None and priority is Priority.POLL and now - at < timedelta(seconds=STALE_FOR_S):
            return remembered
        raise
    app.store.put("offers", id, expiring("offers", {"at": now, "offers": _packed(found)}, now))
    return found


def _remembered(app: App, id: str) -> tuple[datetime | None, list[Offer]]:
    doc = app.store.get("offers", id)
    if doc is None:
        return None, []
    return doc.data["at"], [Offer.model_validate(row) for row in json.loads(doc.data["offers"])]


def _packed(offers: Sequence[Offer]) -> str:
    """As one text: a document of many fields would be indexed by every one of them."""
    return json.dumps([offer.model_dump(mode="json") for offer in offers])


def _may_have_credit(app: App, name: str) -> bool:
    """A marketplace that does not tell, or not now, may have some."""
    try:
        usd = pacing.market(app, name, Priority.POLL, who="offers").credit_usd()
    except MarketError as error:
        app.log("credit_unknown", market=name, error=str(error))
        return True
    return usd is None or Decimal(usd) > 0
