"""What an offer really costs and when it would be ready: the parts that rank it, each with its unit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from common.domain.boot import boot_times
from common.domain.model import Model
from common.domain.offer import Offer, Usd
from common.domain.region import CountryOfIp, Place, nearest, nowhere, place_of_machine, regions

IMAGE_GB = 6.0
"""Compressed, when the wish does not say: what images with a CUDA framework usually have."""
SESSION_HOURS = Decimal(4)
"""A start's cost is spread over so many hours of work."""
CHANGED_SHARE = Decimal("0.2")
"""Of the snapshot's bytes, uploaded anew per session."""
WAIT_USD_PER_HOUR = Decimal(1)
"""What an hour of waiting for a machine counts: nobody bills it, but a cheap machine on a slow line is no bargain."""
SLOWEST_MBIT_S = 10.0
"""A line whose speed is not stated, or lower, counts as this one."""

NEAR_RTT_MS = 20.0
"""A standby at most so far away is near: it mirrors each save without anybody noticing."""
FAR_SHARE_PER_MS = Decimal("0.002")
"""Of the price, for each millisecond more: what a slower mirror and a slower way in are taken to be worth."""
FAR_SHARE_MAX = Decimal("0.3")
"""Where nobody can tell where the machine stands, it counts as far as this: no standby is put near it."""

BYTES_PER_GB = 10**9
SECONDS_PER_HOUR = Decimal(3600)


class Load(Model):
    """What a machine must fetch before it is ready."""

    disk_gb: int
    image_gb: float = IMAGE_GB
    snapshot_gb: float = 0.0
    has_standby: bool = False
    standby_region: str | None = None
    """Where its address is; None = it will be in the nearest region."""


class Ranked(Model):
    """One offer with its parts. `ready_s` = boot + both downloads; `rank_usd_per_hour` orders the list."""

    offer: Offer
    usd_per_hour: Usd
    """GPU + disk: what runs all the time."""
    boot_s: float
    image_download_s: float
    snapshot_download_s: float
    bandwidth_usd: Usd
    """Per session: the image and the snapshot down, what changed up."""
    waiting_usd: Usd
    """Per session: while it boots (where a market bills the GPU only once it runs, the disk), and while it restores."""
    all_in_usd_per_hour: Usd
    """usd_per_hour + (bandwidth_usd + waiting_usd) / SESSION_HOURS."""
    rank_usd_per_hour: Usd
    """all_in_usd_per_hour + the wait itself at WAIT_USD_PER_HOUR / SESSION_HOURS; with a standby, what lies far from it
    counts as dearer."""
    standby_rtt_ms: float | None = None
    """ESTIMATED from the distance to where its standby is or would be; None = no standby, or nobody can tell."""
    standby_rtt_far_ms: float | None = None
    """The same from the far end of its country; None = more than the country is known, or nothing."""
    place: Place | None = None
    """Where the machine stands, and who says so; asked only where a standby is wanted."""
    blocked_until: datetime | None = None
    """Its history keeps it out of deploys until then."""

    @property
    def ready_s(self) -> float:
        return self.boot_s + self.image_download_s + self.snapshot_download_s


def rank(
    offers: Sequence[Offer],
    load: Load,
    *,
    boot_timeout_s: float,
    blocked: Mapping[str, datetime] | None = None,
    country_of_ip: CountryOfIp = nowhere,
) -> list[Ranked]:
    """Best first, blocked machines (`provider:machine_id` -> until when) last."""
    placed = [(offer, place_of_machine(offer, country_of_ip) if load.has_standby else None) for offer in offers]
    blocks = blocked or {}
    ranked = [_ranked(offer, place, load, boot_timeout_s, blocks.get(offer.machine_key)) for offer, place in placed]
    return sorted(ranked, key=lambda r: (r.blocked_until is not None, r.rank_usd_per_hour, r.ready_s, r.offer.offer_id))


def _ranked(
    offer: Offer, place: Place | None, load: Load, boot_timeout_s: float, blocked_until: datetime | None
) -> Ranked:
    boot_s = boot_times(offer.provider, boot_timeout_s).usual_s
    image_s, snapshot_s = (_download_s(size, offer.download_mbit_s) for size in (load.image_gb, load.snapshot_gb))
    running, disk = offer.usd_per_hour(load.disk_gb), offer.disk_usd_per_hour(load.disk_gb)
    image_gb, snapshot_gb = Decimal(str(load.image_gb)), Decimal(str(load.snapshot_gb))
    bandwidth = offer.download_usd_per_gb * (image_gb + snapshot_gb)
    bandwidth += offer.upload_usd_per_gb * snapshot_gb * CHANGED_SHARE
    booting = running if offer.gpu_bills_from == "created" else disk
    waiting = booting * _hours(boot_s + image_s) + running * _hours(snapshot_s)
    all_in = running + (bandwidth + waiting) / SESSION_HOURS
    patience = WAIT_USD_PER_HOUR * _hours(boot_s + image_s + snapshot_s) / SESSION_HOURS
    rtt_ms, rtt_far_ms = _standby_rtt_ms(place, load.standby_region)
    far = running * _far_share(rtt_ms) if load.has_standby else Decimal(0)
    return Ranked(
        offer=offer,
        usd_per_hour=running,
        boot_s=boot_s,
        image_download_s=image_s,
        snapshot_download_s=snapshot_s,
        bandwidth_usd=bandwidth,
        waiting_usd=waiting,
        all_in_usd_per_hour=all_in,
        rank_usd_per_hour=all_in + patience + far,
        standby_rtt_ms=rtt_ms,
        standby_rtt_far_ms=rtt_far_ms,
        place=place,
        blocked_until=blocked_until,
    )


def _standby_rtt_ms(place: Place | None, region: str | None) -> tuple[float | None, float | None]:
    """As estimated, and from the far end of a country of which nothing more is known."""
    if place is None:
        return None, None
    to = nearest(place).region if region is None else regions()[region]
    return place.rtt_ms_to(to), place.rtt_far_ms_to(to)


def _far_share(rtt_ms: float | None) -> Decimal:
    if rtt_ms is None:
        return FAR_SHARE_MAX
    return min(FAR_SHARE_MAX, FAR_SHARE_PER_MS * Decimal(str(max(0.0, rtt_ms - NEAR_RTT_MS))))


def _download_s(size_gb: float, mbit_s: float) -> float:
    return size_gb * 8000 / max(mbit_s, SLOWEST_MBIT_S)


def _hours(seconds: float) -> Decimal:
    return Decimal(str(seconds)) / SECONDS_PER_HOUR
