"""What a user sees of the standbys: whether each one is in sync, how far it lags, where it stands and what it costs."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from common.domain import standby as rules
from common.domain.host import HostRecord, Sync
from common.domain.instance import Instance, Phase, Protection, Want, protection_of
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.region import Place, place_of_machine, region_of, regions
from common.domain.rental import Rental, RentalState
from common.domain.standby_price import StandbyCost, monthly_cost, terms_of
from common.ports import App, every
from common.records import World, load


class Part(StrEnum):
    """What a standby is doing."""

    NONE = "none"
    STARTING = "starting"
    STOPPED = "stopped"
    """Google took the machine; its disk is kept, and it is started again."""
    SYNCING = "syncing"
    MIRROR = "mirror"
    SEALED = "sealed"
    """It gave the GPU up, and waits for the record to agree."""
    WRITER = "writer"
    HANDING_BACK = "handing_back"
    WAITING = "waiting"
    """The instance hibernates: the address is kept."""
    LEAVING = "leaving"


class StandbyOut(Model):
    """One instance's standby; without one, why not."""

    instance_id: str
    name: str
    part: Part
    protection: Protection
    in_sync: bool
    """Proven by both sides, in the present epoch, and the standby is there. Where it is false, the loss is at most the
    snapshot interval."""
    why: str
    """In a sentence, what the user should know."""
    epoch: int
    zone: str | None = None
    address: str | None = None
    distance_km: float | None = None
    """From the GPU, by great circle."""
    estimated_rtt_ms: float | None = None
    estimated_rtt_far_ms: float | None = None
    """The same from the far end of the GPU's country; None = more than the country is known, or nothing."""
    gpu_place_told_by: str | None = None
    """`text` of the marketplace's, or `ip`: only where its address is registered, which may be another country."""
    measured_rtt_ms: float | None = None
    """By the heartbeats between the two; None = not yet."""
    lag_s: float | None = None
    """Age of the oldest change that the other side has not confirmed, as it was last reported."""
    backlog_bytes: int = 0
    backlog_files: int = 0
    seq: int = 0
    root: str | None = None
    """Hash over the tree, of the last pass that compared both."""
    usd_per_hour: Usd | None = None
    month: StandbyCost | None = None
    """Of 730 hours, by part."""
    usd_per_month: Usd | None = None


def standbys(app: App, account: str, now: datetime, *, only: str | None = None) -> list[StandbyOut]:
    """Of every instance of the account that lives, or of the one."""
    docs = every(app.store, "instances", [("account", "==", account)])
    alive = [doc.id for doc in docs if doc.data["ended_at"] is None and only in (None, doc.data["id"])]
    return [show(app, load(app, id), now) for id in alive]


def show(app: App, world: World, now: datetime) -> StandbyOut:
    instance, kept = world.instance.value, world.standby
    host, gpu = world.host(instance.standby), world.rental(instance.cand or instance.writer)
    part = _part(instance, kept.value if kept else None, host)
    sync = sync_of(world)
    base = StandbyOut(
        instance_id=instance.id,
        name=instance.name,
        part=part,
        protection=protection(app, world, now),
        in_sync=is_in_sync(app, world, now),
        why=_why(app, world, part, now),
        epoch=instance.epoch,
        address=instance.address,
        lag_s=sync.lag_s,
        backlog_bytes=sync.backlog_bytes,
        backlog_files=sync.backlog_files,
        seq=sync.seq,
        root=sync.root,
        measured_rtt_ms=sync.rtt_ms,
    )
    if kept is None:
        return base
    is_machine = gpu is not None and not gpu.value.is_standby
    place = place_of_machine(gpu.value.offer, app.country_of_ip, gpu.value.ssh_host) if gpu and is_machine else None
    return base.model_copy(update=_machine(kept.value, place))


def protection(app: App, world: World, now: datetime) -> Protection:
    """By the record; but a mirror that is not there protects nobody until it is."""
    recorded = protection_of(world.instance.value)
    is_absent = recorded is Protection.MIRRORED and not _is_reached(app, world, now)
    return Protection.UNPROTECTED if is_absent else recorded


def is_in_sync(app: App, world: World, now: datetime) -> bool:
    """Proven by both sides, in the present epoch, and the standby is there."""
    return protection(app, world, now) is Protection.MIRRORED


def _is_reached(app: App, world: World, now: datetime) -> bool:
    rental, host = world.standby.value if world.standby else None, world.host(world.instance.value.standby)
    return rules.is_reached(rental, host, silent_after_s=app.settings.timing.silent_after_s, now=now)


def sync_of(world: World) -> Sync:
    """As who sends told it last: the GPU of its mirror, the standby of its candidate."""
    instance = world.instance.value
    host = world.host(instance.writer)
    return host.sync if host and host.sync.epoch == instance.epoch else Sync()


def _part(instance: Instance, rental: Rental | None, host: HostRecord | None) -> Part:
    if rental is None or instance.standby is None:
        return Part.NONE
    if instance.drain is not None or not rental.is_live:
        return Part.LEAVING
    if instance.is_on_standby:
        return Part.HANDING_BACK if instance.phase is Phase.HANDOVER or instance.hand_back_at else Part.WRITER
    if rental.stopped_at is not None:
        return Part.STOPPED
    if rental.state is RentalState.CREATING:
        return Part.STARTING
    if host is not None and host.claim is not None:
        return Part.SEALED
    if instance.mirror:
        return Part.MIRROR
    return Part.SYNCING if instance.writer else Part.WAITING


_SENTENCES = {
    Part.STARTING: "the standby is being started: unprotected until it is in sync",
    Part.STOPPED: "Google stopped the standby and kept its disk; it is started again: unprotected until then",
    Part.SYNCING: "the standby is not in sync yet: a GPU that dies now goes back to the newest snapshot",
    Part.MIRROR: "what a barrier returned for is on the standby; other closed files follow within the lag",
    Part.SEALED: "the standby gave the GPU up and serves the user; the record follows",
    Part.WRITER: "you work on the standby; what you write there is durable with its next snapshot",
    Part.HANDING_BACK: "going back to a GPU",
    Part.WAITING: "the instance hibernates; its address is kept",
    Part.LEAVING: "the standby is on its way out",
}


DEAF = "the standby has everything and hears no heartbeat of its GPU: is its port 7946 (tcp and udp) let in?"


UNHEARD = "the standby has not been heard for long: unprotected until it is. `dumont standby off` and `on` replace it"

MUTE = "the standby has your newest files and has not been heard for long: no GPU is rented until it is"


def _is_deaf(part: Part, host: HostRecord | None) -> bool:
    return part is Part.SYNCING and host is not None and host.sync.is_whole and not host.sync.hears


def _why(app: App, world: World, part: Part, now: datetime) -> str:
    instance = world.instance.value
    if _is_deaf(part, world.host(instance.standby)):
        return DEAF
    if part is Part.MIRROR and not _is_reached(app, world, now):
        return UNHEARD
    if rules.is_mute(instance, world.writer_host, for_s=app.settings.timing.dead_man_s, now=now):
        return MUTE
    if part is not Part.NONE:
        return _SENTENCES[part]
    if app.standbys is None:
        return "unprotected: no credentials of Google's are set (GCP_CREDENTIALS)"
    if not instance.spec.standby:
        return "unprotected: this instance was asked for without a standby"
    if instance.want is not Want.UP or instance.writer is None:
        return "a standby is rented once the instance runs"
    later = instance.standby_not_before
    if later is not None and later > now:
        return f"unprotected: the last standby was lost; the next is rented at {later:%H:%M:%S} UTC"
    return "unprotected: nobody can tell where the GPU stands, so no standby is near it" if not instance.standby else ""


def _machine(rental: Rental, gpu: Place | None) -> dict[str, object]:
    """Where it stands, how far from the GPU, and what it costs."""
    zone = rental.offer.machine_id
    month = monthly_cost(terms_of(rental.offer.offer_id), rental.disk_gb)
    told: dict[str, object] = {
        "zone": zone,
        "usd_per_hour": rental.offer.usd_per_hour(rental.disk_gb),
        "month": month,
        "usd_per_month": month.usd_per_month.quantize(Decimal("0.01")),
    }
    if gpu is None:
        return told
    region = regions()[region_of(zone)]
    far_ms = gpu.rtt_far_ms_to(region)
    return told | {
        "distance_km": round(gpu.km_to(region)),
        "estimated_rtt_ms": round(gpu.rtt_ms_to(region), 1),
        "estimated_rtt_far_ms": None if far_ms is None else round(far_ms, 1),
        "gpu_place_told_by": gpu.told_by,
    }
