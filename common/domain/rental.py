"""One machine we pay for: its label, its lifecycle, its terms and what our own clock says it cost."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Literal, Self

from common.domain.model import Model
from common.domain.offer import Offer, Usd
from common.errors import IllegalMove

TAG_LENGTH = 8
LABEL_MAX_LENGTH = 63
_LABEL = re.compile(r"dumont-([a-z0-9]+)-([a-z0-9]+)-([0-9]+)-([0-9a-f]{8})")

POOL = "pool"
"""Owner in the labels, and account, of machines that wait in the warm pool."""

BYTES_PER_GB = Decimal(10**9)
SECONDS_PER_HOUR = Decimal(3600)


@dataclass(frozen=True)
class Label:
    """`dumont-<deployment>-<owner>-<n>-<tag>`: names one rental attempt for ever."""

    deployment: str
    owner: str
    n: int
    tag: str

    def __str__(self) -> str:
        return f"dumont-{self.deployment}-{self.owner}-{self.n}-{self.tag}"

    @classmethod
    def make(cls, *, deployment: str, owner: str, n: int, key: bytes) -> Self:
        label = cls(deployment, owner, n, _tag(deployment, owner, n, key))
        if len(str(label)) > LABEL_MAX_LENGTH or not _LABEL.fullmatch(str(label)):
            raise ValueError(f"not a legal label: {label}")
        return label

    @classmethod
    def parse(cls, text: str, *, deployment: str, key: bytes) -> Self | None:
        """The label, or None when the text is not one that this deployment wrote (foreign or forged)."""
        match = _LABEL.fullmatch(text)
        if not match or match[1] != deployment:
            return None
        label = cls(match[1], match[2], int(match[3]), match[4])
        return label if hmac.compare_digest(label.tag, _tag(label.deployment, label.owner, label.n, key)) else None


def _tag(deployment: str, owner: str, n: int, key: bytes) -> str:
    return hmac.new(key, f"{deployment}-{owner}-{n}".encode(), hashlib.sha256).hexdigest()[:TAG_LENGTH]


class RentalState(StrEnum):
    CREATING = "creating"
    """The label is written; at most one create call was or will be made."""
    READY = "ready"
    """Of the warm pool: attested, waits for an owner. Of a standby: up, whether it mirrors or writes."""
    SERVING = "serving"
    """A GPU that is the instance's writer, or the candidate that a standby hands back to."""
    HELD = "held"
    """Fenced by the epoch, kept until a snapshot of the new epoch covers it."""
    LOST = "lost"
    """The market says it is gone or took it; still live until the lifecycle decides."""
    RELEASING = "releasing"
    """Retired for ever: anyone may destroy the machine at any time."""
    RELEASED = "released"
    """Retired, absent from a listing, and unknown to a GET by its id."""


MOVES: Mapping[RentalState, frozenset[RentalState]] = {
    RentalState.CREATING: frozenset({RentalState.READY, RentalState.SERVING, RentalState.LOST, RentalState.RELEASING}),
    RentalState.READY: frozenset({RentalState.SERVING, RentalState.LOST, RentalState.RELEASING}),
    RentalState.SERVING: frozenset({RentalState.HELD, RentalState.LOST, RentalState.RELEASING}),
    # held -> serving: the standby died before a snapshot covered what only the old writer has (rule W3)
    RentalState.HELD: frozenset({RentalState.SERVING, RentalState.LOST, RentalState.RELEASING}),
    RentalState.LOST: frozenset({RentalState.RELEASING}),
    RentalState.RELEASING: frozenset({RentalState.RELEASED}),
    RentalState.RELEASED: frozenset(),
}
LIVE = frozenset(
    {RentalState.CREATING, RentalState.READY, RentalState.SERVING, RentalState.HELD, RentalState.LOST}
)  # fmt: skip

Loss = Literal["interrupted", "gone", "offline", "boot_failed"]


class Meter(Model):
    """When the machine's parts ran, by our own records; None = not yet."""

    disk_from: datetime | None = None
    gpu_from: datetime | None = None
    gpu_until: datetime | None = None
    disk_until: datetime | None = None
    paused_s: float = 0.0
    """Of the time from `gpu_from` on, stood still: a standby that was stopped and started again, a host offline."""
    disk_paused_s: float = 0.0
    offline_from: datetime | None = None
    """Since when its host is offline, by the market's word: nothing of it bills."""
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0

    def begun(self, at: datetime, *, bills_gpu: bool) -> Self:
        """It exists since then at the latest; the first word counts."""
        gpu_from = self.gpu_from or (at if bills_gpu else None)
        return self.model_copy(update={"disk_from": self.disk_from or at, "gpu_from": gpu_from})

    def running_since(self, at: datetime) -> Self:
        """By the machine's own word, which is exact where a listing is late: the earliest counts, even when it comes
        after the machine was destroyed."""
        gpu_from, gpu_until = min(at, self.gpu_from or at), self.gpu_until or self.disk_until
        update = {"disk_from": self.disk_from or gpu_from, "gpu_from": gpu_from, "gpu_until": gpu_until}
        return self.model_copy(update=update)

    def reopened(self) -> Self:
        """What was taken for ended goes on: its disk, and its GPU if it ran until then."""
        ran = self.gpu_until is not None and self.gpu_until == self.disk_until
        return self.model_copy(update={"disk_until": None} | ({"gpu_until": None} if ran else {}))

    def stopped(self, at: datetime) -> Self:
        """The GPU no longer runs; the first word counts."""
        at = min(at, self.offline_from or at)
        return self.model_copy(update={"gpu_until": self.gpu_until or (at if self.gpu_from else None)})

    def resumed(self, at: datetime) -> Self:
        """It runs again."""
        if self.gpu_until is None or self.gpu_from is None:
            return self
        paused_s = self.paused_s + max(0.0, (at - self.gpu_until).total_seconds())
        return self.model_copy(update={"gpu_until": None, "paused_s": paused_s})

    def offline(self, at: datetime) -> Self:
        """Its host is; the first word counts."""
        return self.model_copy(update={"offline_from": self.offline_from or at})

    def online(self, at: datetime) -> Self:
        """Again: what had not ended bills on."""
        if self.offline_from is None:
            return self
        gap_s = max(0.0, (at - self.offline_from).total_seconds())
        gpu_s = gap_s if self.gpu_from and not self.gpu_until else 0.0
        disk_s = gap_s if self.disk_from and not self.disk_until else 0.0
        paused = {"paused_s": self.paused_s + gpu_s, "disk_paused_s": self.disk_paused_s + disk_s}
        return self.model_copy(update={"offline_from": None, **paused})

    def ended(self, at: datetime) -> Self:
        """Nothing of it runs any more."""
        at = min(at, self.offline_from or at)
        return self.stopped(at).model_copy(update={"disk_until": self.disk_until or (at if self.disk_from else None)})


class Rental(Model):
    """The document `rentals/<label>`; its id is the label."""

    schema_version: int = 1
    label: str
    kind: Literal["gpu", "standby"] = "gpu"
    account: str
    instance_id: str | None
    """None = a pool rental without an owner."""
    instance_key: str | None
    provider: str
    state: RentalState = RentalState.CREATING
    at: datetime
    """Of the last move."""
    created_at: datetime
    offer: Offer
    image: str
    disk_gb: int
    not_before: datetime
    """The earliest time of the next call for it: its create, later its destroy (the market's pacing)."""
    cap_usd_per_hour: Usd | None = None
    """GPU + disk: a machine that turns out dearer is released at once."""
    create_called_at: datetime | None = None
    provider_id: str | None = None
    """A hint; the listing plus the label is the truth."""
    looked_at: datetime | None = None
    """First time that the marketplace told about the machine itself, not only that it exists."""
    stated_usd_per_hour: Usd | None = None
    """GPU + disk as it stated then; None = it states no price."""
    ready_at: datetime | None = None
    assigned_at: datetime | None = None
    """When an instance took it from the pool: the pool pays for it until then."""
    destroy_called_at: datetime | None = None
    destroyed_at: datetime | None = None
    """The last destroy was answered with success: it is gone unless a listing shows it all the same."""
    absent_at: datetime | None = None
    """First listing, after the record was read, that lacked a live rental."""
    unreachable_at: datetime | None = None
    """Listed as running while its host is silent."""
    stopped_at: datetime | None = None
    """Of a standby: listed as stopped since then, its disk kept; it is started again."""
    writes: bool = False
    """Of a standby: it is the writer, and is looked at in every pass as whatever only it has deserves."""
    start_called_at: datetime | None = None
    """The last time that it was."""
    loss: Loss | None = None
    was_held: bool = False
    """Fenced, and never the writer again: the instance did not let it go by itself."""
    message: str = ""
    """What the market last said about it, or why the attempt ended."""
    ssh_host: str | None = None
    ssh_port: int | None = None
    meter: Meter = Meter()
    booked: str | None = None
    """Digest of the entries that the ledger holds for it; "" while they are being written."""
    booked_micro_usd: int = 0
    """What of them its owner pays."""
    settled: bool = False
    """The ledger holds everything the provider will ever bill for it."""
    restless: bool = True
    """Indexed: a pass of the reconcile has something to do for it; set whenever the record is written."""

    def to(self, state: RentalState, *, at: datetime, message: str | None = None) -> Self:
        """The same rental, one legal move later."""
        if state not in MOVES[self.state]:
            raise IllegalMove(f"rental {self.label} is {self.state}; it cannot become {state}")
        update = {"state": state, "at": at, "message": self.message if message is None else message}
        if state in (RentalState.HELD, RentalState.SERVING):
            update["was_held"] = state is RentalState.HELD
        return self.model_copy(update=update)

    def assigned(self, *, account: str, instance_id: str, instance_key: str, at: datetime) -> Self:
        """A machine of the pool gets its owner. Its label stays the pool's."""
        owner = {"account": account, "instance_id": instance_id, "instance_key": instance_key, "assigned_at": at}
        return self.to(RentalState.SERVING, at=at).model_copy(update=owner)

    def with_restlessness(self) -> Self:
        """It rests while it serves or stands by, is listed and heard, and once its bill is closed."""
        is_up = self.state is RentalState.SERVING or (self.is_standby and self.state is RentalState.READY)
        is_up = is_up and not self.writes
        is_there = self.unreachable_at is None and self.absent_at is None and self.stopped_at is None
        is_there = is_there and self.meter.offline_from is None
        serves = is_up and is_there
        return self.model_copy(update={"restless": not (self.settled or serves)})

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def is_standby(self) -> bool:
        return self.kind == "standby"

    @property
    def is_overpriced(self) -> bool:
        """Dearer than the cap, by the marketplace's own word about this machine."""
        stated, cap = self.stated_usd_per_hour, self.cap_usd_per_hour
        return stated is not None and cap is not None and stated > cap

    def metered_usd(self, now: datetime, *, since: datetime | None = None) -> dict[str, Decimal]:
        """Cost so far per kind by our own records and the offer's terms; only what ran from `since` on, if given."""
        meter = self.meter
        gpu_ends = meter.gpu_until or meter.offline_from or now, self.gpu_billed_until(now)
        disk_ends = meter.disk_until or meter.offline_from or now, self.disk_billed_until(now)
        return {
            "gpu": self.offer.gpu_usd_per_hour * _hours(meter.gpu_from, *gpu_ends, since),
            "disk": self.offer.disk_usd_per_hour(self.disk_gb) * _hours(meter.disk_from, *disk_ends, since),
            "bandwidth_up": self.offer.upload_usd_per_gb * meter.uploaded_bytes / BYTES_PER_GB,
            "bandwidth_down": self.offer.download_usd_per_gb * meter.downloaded_bytes / BYTES_PER_GB,
        }

    def gpu_billed_until(self, now: datetime) -> datetime:
        """End of what its GPU or machine bills: without what it stood still, and no less than the vendor's least."""
        meter = self.meter
        until = (meter.gpu_until or meter.offline_from or now) - timedelta(seconds=meter.paused_s)
        if meter.gpu_from is None or meter.gpu_until is None:
            return until
        return max(until, meter.gpu_from + timedelta(seconds=self.offer.billed_s_min))

    def disk_billed_until(self, now: datetime) -> datetime:
        meter = self.meter
        return (meter.disk_until or meter.offline_from or now) - timedelta(seconds=meter.disk_paused_s)

    @property
    def now_usd_per_hour(self) -> Decimal:
        """By our own meter: the GPU while it runs, the disk while it is kept, and nothing while its host is offline."""
        if self.meter.offline_from:
            return Decimal(0)
        gpu = self.offer.gpu_usd_per_hour if self.meter.gpu_from and not self.meter.gpu_until else Decimal(0)
        disk = self.offer.disk_usd_per_hour(self.disk_gb)
        return gpu + (disk if self.meter.disk_from and not self.meter.disk_until else Decimal(0))

    def usd_per_second(self, kind: str) -> Decimal:
        """The rate of one kind: of bandwidth, the line at its full advertised speed."""
        offer = self.offer
        rates = {
            "gpu": offer.gpu_usd_per_hour / SECONDS_PER_HOUR,
            "disk": offer.disk_usd_per_hour(self.disk_gb) / SECONDS_PER_HOUR,
            "bandwidth_up": offer.upload_usd_per_gb * _gb_per_second(offer.upload_mbit_s),
            "bandwidth_down": offer.download_usd_per_gb * _gb_per_second(offer.download_mbit_s),
        }
        return rates[kind]


def _gb_per_second(mbit_s: float) -> Decimal:
    return Decimal(str(mbit_s)) / 8000


def _hours(start: datetime | None, end: datetime, billed_until: datetime, since: datetime | None) -> Decimal:
    """From `since` on, if given: when it stood still is not known, so a part of the time is never taken for less than
    what may have been billed in it."""
    if start is None:
        return Decimal(0)
    within_s = (max(end, billed_until) - max(start, since or start)).total_seconds()
    seconds = min((billed_until - start).total_seconds(), within_s)
    return Decimal(str(max(0, seconds))) / SECONDS_PER_HOUR
