"""What a marketplace showed within one hour: every machine slice of one GPU model, look by look. Pure.

Offer ids are unstable, so a series is keyed by (machine_id, num_gpus). An hour holds all series of one marketplace and
model: with a document each, a look at 500 machines would cost 500 writes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

from common.domain.model import Model
from common.domain.offer import Offer, Survey
from common.domain.series import HOUR_S

RECORDED_GPUS = (
    "RTX 3090", "RTX 4090", "RTX 5090", "L40S", "A100 PCIE", "A100 SXM4", "H100 SXM", "H100 PCIE", "H200", "B200",
)  # fmt: skip
"""The models whose market is recorded; any other can be rented all the same."""
GPUS_PER_RUN = 2
"""Of each marketplace: ten models have their turn every 25 minutes, and half of a burst of searches is left alone."""
LOOK_SPACING_S = 240
"""A look that comes sooner after another replaces it: an hour holds at most 15, whoever asks how often."""
DECIMALS = 5
"""Of prices in USD per hour, as they are kept."""
UNKNOWN_REGION = "??"
"""Where the marketplace's text names no country."""


class Look(NamedTuple):
    """One survey."""

    second: int
    """Within the hour."""
    is_whole: bool
    """False: the answer was cut off; what is missing in it was not looked at."""


class Quote(NamedTuple):
    """The price of one slice at one look, in USD per hour without disk."""

    look: int
    """Index of the look."""
    usd_per_hour: float
    bid_floor_usd_per_hour: float | None


class Slice(Model):
    """One series: the quotes of (machine_id, num_gpus), in order of time; a look without a quote did not show it."""

    region: str
    reliability: float
    """0..1 as the marketplace states it."""
    quotes: tuple[Quote, ...]


class QuoteHour(Model):
    """The content of `quotes/<provider>.<gpu>.<hour>`."""

    provider: str
    gpu: str
    hour: int
    """Hours since 1970."""
    looks: tuple[Look, ...] = ()
    slices: dict[str, Slice] = {}
    """`<machine_id>x<num_gpus>` -> its series."""

    @property
    def id(self) -> str:
        return f"{market_id(self.provider, self.gpu)}.{self.hour}"

    def with_look(self, survey: Survey, now: datetime) -> Self:
        """`now` is within the hour. A look that comes too soon after the last one takes its place."""
        second = int(now.timestamp()) - self.hour * HOUR_S
        is_soon = bool(self.looks) and second - self.looks[-1].second < LOOK_SPACING_S
        looks = self.looks[:-1] if is_soon else self.looks
        kept = {key: _before(slice, len(looks)) for key, slice in self.slices.items()} if is_soon else dict(self.slices)
        slices = {key: slice for key, slice in kept.items() if slice.quotes}
        for offer in survey.offers:
            key = f"{offer.machine_id}x{offer.num_gpus}"
            before = slices[key].quotes if key in slices else ()
            if not before or before[-1].look < len(looks):
                slices[key] = Slice(
                    region=region_of(offer),
                    reliability=round(offer.reliability, 4),
                    quotes=(*before, _quote(offer, len(looks))),
                )
        return self.model_copy(
            update={"looks": (*looks, Look(second, survey.is_whole)), "slices": slices},
        )

    def packed(self) -> dict[str, Any]:
        """As a document: one text, because a document of many fields is indexed by every one of them."""
        return {
            "schema_version": 1,
            "provider": self.provider,
            "gpu": self.gpu,
            "hour_starts_at": datetime.fromtimestamp(self.hour * HOUR_S, UTC),
            "looks": len(self.looks),
            "packed": self.model_dump_json(),
        }

    @classmethod
    def unpacked(cls, data: dict[str, Any]) -> Self:
        return cls.model_validate(json.loads(data["packed"]))


def hour_of(now: datetime) -> int:
    return math.floor(now.timestamp() / HOUR_S)


def market_id(provider: str, gpu: str) -> str:
    """`vast.rtx-4090`: one marketplace's market of one model."""
    return f"{provider}.{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}"


def region_of(offer: Offer) -> str:
    """ISO 3166 alpha-2, or UNKNOWN_REGION."""
    return offer.country or UNKNOWN_REGION


def due(slot: int, gpus: Sequence[str], per_run: int) -> list[str]:
    """Whose turn it is in the n-th run: every model as often as any other, without a memory of the last one."""
    count = min(per_run, len(gpus))
    return [gpus[(slot * count + n) % len(gpus)] for n in range(count)]


def _quote(offer: Offer, look: int) -> Quote:
    floor = offer.bid_floor_usd_per_hour
    usd = round(float(offer.gpu_usd_per_hour), DECIMALS)
    return Quote(look, usd, None if floor is None else round(float(floor), DECIMALS))


def _before(slice: Slice, look: int) -> Slice:
    return slice.model_copy(update={"quotes": tuple(quote for quote in slice.quotes if quote.look < look)})
