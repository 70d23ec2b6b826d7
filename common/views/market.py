"""What a GPU costs where, now and in the hours to come: the recorded outlook, filtered, with what it has been worth."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.outlook import Cheapest, Outlook, RegionOutlook, Score
from common.domain.price import Bid, Forecast
from common.domain.quotes import GPUS_PER_RUN, RECORDED_GPUS, market_id
from common.domain.waiting import Advice
from common.errors import UnknownGpu
from common.ports import App, every

OLD_AFTER_LOOKS = 12
"""Turns of a model that may be missed before its price is no longer called one of now."""


class ServedForecast(Forecast):
    """A forecast with what those served for this horizon before have been worth, on this very series."""

    served: int = 0
    """Scored since the record began."""
    served_rmae: float | None = None
    """Their error over that of the last value: below 1 they were better. None = nothing scored, or no move."""
    served_coverage: float | None = None
    """Share of the prices that fell between p10 and p90; 0.8 is meant."""
    served_unscored: int = 0
    """Those whose hour nobody saw."""


class SpotRow(Model):
    """One GPU of one model in one region of one marketplace. Prices in USD per hour; what is not known is null."""

    gpu: str
    provider: str
    region: str
    """ISO 3166 alpha-2; ?? = the marketplace names no country."""
    looked_at: datetime
    seen_at: datetime | None
    """The last look that found an offer."""
    machines: int | None
    """That offer a single GPU now; null = the answer was cut off before this region's."""
    now: Cheapest | None
    """The cheapest on demand: bare, with disk, and all in."""
    median_usd_per_hour: Usd | None
    bid_floor_usd_per_hour: Usd | None
    """The lowest bid taken now."""
    discount: float | None
    """Of that bid against the cheapest on demand: 0.27 = 27 % cheaper."""
    availability_24h: float | None
    """Share of the looks that found a machine."""
    availability_7d: float | None
    forecasts: list[ServedForecast]
    """Of the cheapest bare price. A trend is named only where it has proven itself on this very series."""
    survival: dict[str, float]
    """`1h` and `6h`: the chance that a machine is still to be had here then."""
    bid: Bid | None
    """The recommended bid, with the chance of being outbid."""
    wait: Advice | None
    """Whether who can wait should, and what waiting saved in backtest."""


class SpotMarket(Model):
    as_of: datetime | None
    """The oldest look in it; null = nothing is recorded yet."""
    recorded_gpus: list[str]
    rent_now: SpotRow | None
    """Where the first GPU asked for is cheapest all in."""
    items: list[SpotRow]


def spot(
    app: App, *, now: datetime, gpu: str | None = None, region: str | None = None, provider: str | None = None
) -> SpotMarket:
    """Rows by GPU, then by price all in. Raises `UnknownGpu` for a model that is not recorded."""
    outlooks = [outlook for outlook in _outlooks(app, gpu, provider) if outlook.looked_at]
    rows = [row for outlook in outlooks for row in _rows(outlook, app, now) if region in (None, row.region)]
    items = sorted(rows, key=lambda row: (RECORDED_GPUS.index(row.gpu), _price(row), row.provider, row.region))
    return SpotMarket(
        as_of=min((row.looked_at for row in items), default=None),
        recorded_gpus=[*RECORDED_GPUS],
        rent_now=next((row for row in items if row.now), None),
        items=items,
    )


def _outlooks(app: App, gpu: str | None, provider: str | None) -> list[Outlook]:
    providers = [name for name in sorted(app.markets) if provider in (None, name)]
    if gpu is None:
        found = (Outlook.unpacked(doc.data) for doc in every(app.store, "outlooks"))
        return [outlook for outlook in found if outlook.provider in providers and outlook.gpu in RECORDED_GPUS]
    model = next((name for name in RECORDED_GPUS if name.lower() == gpu.replace("_", " ").strip().lower()), None)
    if model is None:
        raise UnknownGpu(f"the market of {gpu!r} is not recorded; recorded are {', '.join(RECORDED_GPUS)}")
    docs = (app.store.get("outlooks", market_id(name, model)) for name in providers)
    return [Outlook.unpacked(doc.data) for doc in docs if doc]


def _rows(outlook: Outlook, app: App, now: datetime) -> Iterable[SpotRow]:
    """An outlook that was not renewed for long tells the past and no price of now."""
    assert outlook.looked_at
    turn_s = app.settings.timing.market_every_s * len(RECORDED_GPUS) / GPUS_PER_RUN
    is_old = (now - outlook.looked_at).total_seconds() > turn_s * OLD_AFTER_LOOKS
    for name, region in outlook.regions.items():
        yield _row(outlook, name, _without_present(region) if is_old else region)


def _without_present(region: RegionOutlook) -> RegionOutlook:
    gone = ("machines", "now", "median_usd_per_hour", "bid_floor_usd_per_hour", "discount", "bid", "wait")
    return region.model_copy(update={**dict.fromkeys(gone), "forecasts": (), "survival": {}})


def _row(outlook: Outlook, name: str, region: RegionOutlook) -> SpotRow:
    assert outlook.looked_at
    return SpotRow(
        gpu=outlook.gpu,
        provider=outlook.provider,
        region=name,
        looked_at=outlook.looked_at,
        seen_at=region.seen_at,
        machines=region.machines,
        now=region.now,
        median_usd_per_hour=region.median_usd_per_hour,
        bid_floor_usd_per_hour=region.bid_floor_usd_per_hour,
        discount=region.discount,
        availability_24h=region.availability_24h,
        availability_7d=region.availability_7d,
        forecasts=_served(region.forecasts if region.now else (), region.scores),
        survival={f"{hours}h": chance for hours, chance in region.survival.items() if region.now},
        bid=region.bid if region.now else None,
        wait=region.wait if region.now else None,
    )


def _served(forecasts: Sequence[Forecast], scores: dict[int, Score]) -> list[ServedForecast]:
    found = []
    for forecast in forecasts:
        score = scores.get(forecast.horizon_s // 3600) or Score(horizon_h=forecast.horizon_s // 3600)
        found.append(
            ServedForecast(
                **forecast.model_dump(),
                served=score.n,
                served_rmae=score.rmae,
                served_coverage=score.covered / score.n if score.n else None,
                served_unscored=score.unscored,
            )
        )
    return found


def _price(row: SpotRow) -> float:
    return float(row.now.all_in_usd_per_hour) if row.now else float("inf")
