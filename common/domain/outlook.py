"""What is known of one marketplace's market of one GPU model, per region: its past by the hour, and what comes. Pure.

The past (`History`) is the cheapest single GPU of each hour. Once an hour every region gets its forecasts, which are
kept until their time has come and are then scored against the last value (`Outlook`): what is served is what is scored.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, Self

from common.domain import price, survival, waiting
from common.domain.model import Model
from common.domain.offer import Offer, Survey, Usd
from common.domain.price import Bid, Forecast
from common.domain.quotes import DECIMALS, hour_of, market_id, region_of
from common.domain.ranking import Load, rank
from common.domain.series import HOUR_S, Series
from common.domain.survival import Coefficients, Place
from common.domain.waiting import Advice

HISTORY_HOURS = 28 * 24
"""Twice what the bands and the waiting rule look back."""
REGIONS_MAX = 40
"""Per marketplace and model; the one whose last offer is the longest ago makes room."""
HORIZONS_H = (1, 6, 24)
"""Of price forecasts."""
SURVIVAL_H = (1, 6)
WAIT_AT_MOST_H = 24
ADVICE_FROM_HOURS = 8 * 24
"""More than half of the waiting rule's look-back of 14 days: with less nothing is known about what is cheap."""
DISK_GB = 32
"""Of the usual wish, for prices all in."""
HOURS_PER_DAY = 24


# --- the past


class Hour(NamedTuple):
    """One hour of one region, as its last look showed it; prices of one GPU in USD per hour without disk."""

    machines: int | None
    """That offered a single GPU; None = nobody looked, or the answer was cut off before them."""
    usd_per_hour: float | None
    """The cheapest; None = none was there."""
    bid_floor_usd_per_hour: float | None
    """The lowest; None also where the marketplace takes no bids."""


UNSEEN = Hour(None, None, None)


class Past(Model):
    """One region, hour after hour without a hole: hours that nobody saw are UNSEEN."""

    first: int
    """Hours since 1970."""
    hours: tuple[Hour, ...]

    def noted(self, hour: int, seen: Hour) -> Self:
        """A later look of the same hour replaces the one before, unless it saw nothing of this region."""
        gap = hour - (self.first + len(self.hours))
        if gap < -1 or (gap == -1 and seen == UNSEEN):
            return self
        kept = self.hours[:-1] if gap == -1 else (*self.hours, *[UNSEEN] * min(gap, HISTORY_HOURS))
        hours = (*kept, seen)[-HISTORY_HOURS:]
        return self.model_copy(update={"first": hour + 1 - len(hours), "hours": hours})

    def prices(self) -> Series:
        return self._series([hour.usd_per_hour for hour in self.hours])

    def floors(self) -> Series:
        return self._series([hour.bid_floor_usd_per_hour for hour in self.hours])

    def _series(self, usd: Sequence[float | None]) -> Series:
        known = [(self.first + i, value) for i, value in enumerate(usd) if value is not None]
        return Series(HOUR_S, tuple(tick for tick, _ in known), tuple(value for _, value in known))

    def place(self, name: str) -> Place:
        up = tuple(None if hour.machines is None else hour.machines > 0 for hour in self.hours)
        return Place(name=name, region="", step_s=HOUR_S, first=self.first, up=up)

    def availability(self, hours: int) -> float | None:
        """Share of the looks of the last hours that found a machine; None without a look."""
        looks = [hour.machines > 0 for hour in self.hours[-hours:] if hour.machines is not None]
        return sum(looks) / len(looks) if looks else None


class History(Model):
    """The content of `market_history/<provider>.<gpu>`."""

    provider: str
    gpu: str
    regions: dict[str, Past] = {}

    @property
    def id(self) -> str:
        return market_id(self.provider, self.gpu)

    def with_look(self, survey: Survey, now: datetime) -> Self:
        """A region without an offer had none, unless the answer was cut off: then nobody knows."""
        hour, offers = hour_of(now), _by_region(survey.offers)
        absent = Hour(0, None, None) if survey.is_whole else UNSEEN
        regions = dict(self.regions)
        for region in {*regions, *offers}:
            past = regions.get(region) or Past(first=hour, hours=())
            regions[region] = past.noted(hour, _hour(offers[region]) if region in offers else absent)
        kept = sorted(regions, key=lambda region: _last_offer(regions[region]), reverse=True)[:REGIONS_MAX]
        return self.model_copy(update={"regions": {region: regions[region] for region in sorted(kept)}})

    def packed(self) -> dict[str, Any]:
        return {"schema_version": 1, "packed": self.model_dump_json()}

    @classmethod
    def unpacked(cls, data: Mapping[str, Any]) -> Self:
        return cls.model_validate(json.loads(data["packed"]))

    def places(self) -> list[Place]:
        return [past.place(f"{self.id} {region}") for region, past in self.regions.items()]


def _by_region(offers: Iterable[Offer]) -> dict[str, list[Offer]]:
    """Offers of a single GPU: the price of one GPU of eight is no price at which one can be rented."""
    found: dict[str, list[Offer]] = {}
    for offer in offers:
        if offer.num_gpus == 1:
            found.setdefault(region_of(offer), []).append(offer)
    return found


def _hour(offers: Sequence[Offer]) -> Hour:
    floors = [offer.bid_floor_usd_per_hour for offer in offers if offer.bid_floor_usd_per_hour is not None]
    usd = min(offer.gpu_usd_per_hour for offer in offers)
    return Hour(
        machines=len({offer.machine_id for offer in offers}),
        usd_per_hour=round(float(usd), DECIMALS),
        bid_floor_usd_per_hour=round(float(min(floors)), DECIMALS) if floors else None,
    )


def _last_offer(past: Past) -> int:
    return max((past.first + i for i, hour in enumerate(past.hours) if hour.machines), default=0)


# --- the present, and what comes


class Cheapest(Model):
    """What can be rented now: one GPU on demand, in USD per hour."""

    machine_id: str
    usd_per_hour: Usd
    """Bare: GPU, CPU and memory without disk."""
    with_disk_usd_per_hour: Usd
    """With a disk of DISK_GB, as the marketplace creates it."""
    all_in_usd_per_hour: Usd
    """With one session's bandwidth and waiting, spread over its hours."""


class Open(NamedTuple):
    """A served forecast whose time has not come."""

    made: int
    """Hours since 1970."""
    horizon_h: int
    last: float
    p10: float
    p50: float
    p90: float


class Score(Model):
    """How the forecasts that were served for one horizon have done. Errors are absolute differences of logarithms."""

    horizon_h: int
    n: int = 0
    error: float = 0.0
    last_value_error: float = 0.0
    covered: int = 0
    """Prices between p10 and p90."""
    unscored: int = 0
    """Forecasts whose hour nobody saw, or in which there was no offer."""

    @property
    def rmae(self) -> float | None:
        """Below 1: better than the last value. None = the price never moved, or nothing is scored."""
        return self.error / self.last_value_error if self.last_value_error else None

    def with_outcome(self, forecast: Open, actual: float | None) -> Self:
        if actual is None:
            return self.model_copy(update={"unscored": self.unscored + 1})
        return self.model_copy(
            update={
                "n": self.n + 1,
                "error": self.error + abs(math.log(actual / forecast.p50)),
                "last_value_error": self.last_value_error + abs(math.log(actual / forecast.last)),
                "covered": self.covered + (forecast.p10 <= actual <= forecast.p90),
            }
        )


class RegionOutlook(Model):
    """One region: what its last look showed, and what was forecast in its present hour."""

    seen_at: datetime | None = None
    """The last look that found an offer."""
    machines: int | None = None
    now: Cheapest | None = None
    median_usd_per_hour: Usd | None = None
    bid_floor_usd_per_hour: Usd | None = None
    discount: float | None = None
    """Of the lowest bid against renting on demand."""
    availability_24h: float | None = None
    availability_7d: float | None = None
    forecasts: tuple[Forecast, ...] = ()
    survival: dict[int, float] = {}
    """Hours -> the chance that a machine is still to be had here then."""
    bid: Bid | None = None
    wait: Advice | None = None
    open: tuple[Open, ...] = ()
    scores: dict[int, Score] = {}


class Outlook(Model):
    """The content of `outlooks/<provider>.<gpu>`: small, and all that a reader needs."""

    provider: str
    gpu: str
    looked_at: datetime | None = None
    is_whole: bool = True
    forecast_hour: int | None = None
    """In which the forecasts were made: once an hour."""
    regions: dict[str, RegionOutlook] = {}

    @property
    def id(self) -> str:
        return market_id(self.provider, self.gpu)

    def packed(self) -> dict[str, Any]:
        return {"schema_version": 1, "packed": self.model_dump_json()}

    @classmethod
    def unpacked(cls, data: Mapping[str, Any]) -> Self:
        return cls.model_validate(json.loads(data["packed"]))


def look_ahead(
    before: Outlook,
    history: History,
    survey: Survey,
    coefficients: Coefficients,
    *,
    boot_timeout_s: float,
    now: datetime,
) -> Outlook:
    """The outlook after a look that is in the history already. Raises nothing for thin histories: they say less."""
    hour, offers = hour_of(now), _by_region(survey.offers)
    regions = {
        region: _present(
            before.regions.get(region) or RegionOutlook(), past, offers.get(region, ()), survey, boot_timeout_s, now
        )
        for region, past in history.regions.items()
    }
    is_new_hour = before.forecast_hour is None or hour > before.forecast_hour
    if is_new_hour:
        regions = _forecast(history, regions, coefficients, hour)
    return before.model_copy(
        update={
            "looked_at": now,
            "is_whole": survey.is_whole,
            "forecast_hour": hour if is_new_hour else before.forecast_hour,
            "regions": regions,
        }
    )


def _present(
    before: RegionOutlook, past: Past, offers: Sequence[Offer], survey: Survey, boot_timeout_s: float, now: datetime
) -> RegionOutlook:  # fmt: skip
    floors = [offer.bid_floor_usd_per_hour for offer in offers if offer.bid_floor_usd_per_hour is not None]
    cheapest, floor = _cheapest(offers, boot_timeout_s), min(floors, default=None)
    return before.model_copy(
        update={
            "seen_at": now if offers else before.seen_at,
            "machines": past.hours[-1].machines if offers or survey.is_whole else None,
            "now": cheapest,
            "median_usd_per_hour": _median(offers) if offers else None,
            "bid_floor_usd_per_hour": floor,
            "discount": price.discount(float(floor), float(cheapest.usd_per_hour)) if floor and cheapest else None,
            "availability_24h": past.availability(HOURS_PER_DAY),
            "availability_7d": past.availability(7 * HOURS_PER_DAY),
            **_advice_at(before, past.hours[-1]),
        }
    )


def _advice_at(before: RegionOutlook, seen: Hour) -> dict[str, Bid | Advice | None]:
    """What was advised in the hour's first look, at the prices of this one: a bid that would be refused, or pay more
    than the machine costs on demand, is none."""
    usd, floor, bid = seen.usd_per_hour, seen.bid_floor_usd_per_hour, before.bid
    may_bid = bid is not None and usd is not None and floor is not None and floor <= bid.usd_per_hour <= usd
    return {"bid": bid if may_bid else None, "wait": before.wait.at(usd) if before.wait and usd else before.wait}


def _median(offers: Sequence[Offer]) -> Decimal:
    """Of two in the middle the cheaper one: a price that somebody asks."""
    prices = sorted(offer.gpu_usd_per_hour for offer in offers)
    return prices[(len(prices) - 1) // 2]


def _cheapest(offers: Sequence[Offer], boot_timeout_s: float) -> Cheapest | None:
    """By the bare price, as in the history; its price all in beside it."""
    if not offers:
        return None
    offer = min(offers, key=lambda offer: (offer.gpu_usd_per_hour, offer.machine_id))
    (ranked,) = rank([offer], Load(disk_gb=DISK_GB), boot_timeout_s=boot_timeout_s)
    digits = Decimal(1).scaleb(-DECIMALS)
    return Cheapest(
        machine_id=offer.machine_id,
        usd_per_hour=offer.gpu_usd_per_hour,
        with_disk_usd_per_hour=ranked.usd_per_hour.quantize(digits),
        all_in_usd_per_hour=ranked.all_in_usd_per_hour.quantize(digits),
    )


def _forecast(
    history: History, regions: Mapping[str, RegionOutlook], coefficients: Coefficients, hour: int
) -> dict[str, RegionOutlook]:  # fmt: skip
    """Those that are due are scored, then every region with an offer gets new ones; all regions are peers."""
    names = list(history.regions)
    many = [history.regions[name].prices() for name in names]
    lives = {h: survival.newest(history.places(), coefficients.model(h)) for h in SURVIVAL_H}
    ahead: dict[str, list[Forecast]] = {name: [] for name in names}
    for horizon in HORIZONS_H:
        for name, series, made in zip(names, many, price.forecasts(many, horizon), strict=True):
            if made is not None and series.ticks[-1] == hour:
                ahead[name].append(made)
    return {
        name: _with_forecasts(regions[name], history.regions[name], series, ahead[name], hour).model_copy(
            update={"survival": {h: of[key] for h, of in lives.items() if (key := f"{history.id} {name}") in of}}
        )
        for name, series in zip(names, many, strict=True)
    }


def _with_forecasts(
    region: RegionOutlook, past: Past, series: Series, made: Sequence[Forecast], hour: int
) -> RegionOutlook:  # fmt: skip
    seen = dict(zip(series.ticks, series.usd, strict=True))
    scores, still_open = dict(region.scores), []
    for forecast in region.open:
        if (due := forecast.made + forecast.horizon_h) > hour:
            still_open.append(forecast)
            continue
        before = scores.get(forecast.horizon_h) or Score(horizon_h=forecast.horizon_h)
        scores[forecast.horizon_h] = before.with_outcome(forecast, seen.get(due))
    last = seen.get(hour)
    new = [Open(hour, f.horizon_s // HOUR_S, last, f.p10, f.p50, f.p90) for f in made] if last else []
    enough = len(series) >= ADVICE_FROM_HOURS and last is not None
    floors = past.floors()
    return region.model_copy(
        update={
            "forecasts": tuple(made),
            "open": (*still_open, *new),
            "scores": scores,
            "bid": price.recommended_bid(floors, at_most=last) if last and floors.ticks[-1:] == (hour,) else None,
            "wait": waiting.advise(series, WAIT_AT_MOST_H * HOUR_S // series.step_s) if enough else None,
        }
    )
