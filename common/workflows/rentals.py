"""The only place that spends money: label first, one create call per label, destroy until it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

from common import auth
from common.domain import startup
from common.domain.boot import boot_times
from common.domain.host import Attest
from common.domain.instance import Instance
from common.domain.offer import Offer
from common.domain.pacing import Priority
from common.domain.rental import Label, Meter, Rental, RentalState
from common.errors import (
    MarketError,
    MarketKeyRefused,
    MarketRefused,
    MarketUnknown,
    NoCredit,
    NotFound,
    OfferGone,
    QuotaExceeded,
    SettingError,
    Stale,
    Throttled,
)
from common.ports import App, Create, Launch, Listed, Write, every
from common.records import Kept, World, dump, event, read, record_of
from common.workflows import pacing
from common.workflows.pacing import Paced

BUNDLE_URL_FOR_S = 3600
PROBE_KEY = "probes/upload"
"""One object that every machine's probe of its line overwrites: it never holds anything of worth."""
NOTE_ATTEMPTS = 5
LOOK_AGAIN_S = 5.0
"""After a look at a new machine that told nothing."""
DEFINITE_REFUSALS = (OfferGone, NoCredit, MarketRefused, MarketKeyRefused, Throttled, QuotaExceeded)
"""Of a create: nothing was rented, unless the refusal names what exists all the same."""


@dataclass(frozen=True)
class Owner:
    """Whose attempts are planned: an instance, or the warm pool."""

    id: str
    """In the labels."""
    n: int
    """Of the attempts so far."""
    account: str
    image: str
    disk_gb: int
    max_usd_per_hour: Decimal | None
    instance_id: str | None = None
    instance_key: str | None = None
    kind: Literal["gpu", "standby"] = "gpu"


def plan(
    app: App, kept: Kept[Instance], offers: Sequence[Offer], now: datetime
) -> tuple[list[str], list[Write]]:  # fmt: skip
    """The next attempts of an instance, as `plan_for` says."""
    return plan_for(app, _owner(kept.value), offers, now)


def plan_standby(app: App, kept: Kept[Instance], offer: Offer, now: datetime) -> tuple[str, list[Write]]:
    """The next standby of an instance: its disk is as large as the GPU's."""
    owner = replace(_owner(kept.value), kind="standby", image="", max_usd_per_hour=None)
    (label,), writes = plan_for(app, owner, [offer], now)
    return label, writes


def _owner(instance: Instance) -> Owner:
    spec = instance.spec
    return Owner(
        id=instance.id,
        n=instance.n,
        account=instance.account,
        image=spec.image,
        disk_gb=spec.disk_gb,
        max_usd_per_hour=spec.max_usd_per_hour,
        instance_id=instance.id,
        instance_key=instance.key,
    )


def plan_for(app: App, owner: Owner, offers: Sequence[Offer], now: datetime) -> tuple[list[str], list[Write]]:
    """Labels and the writes that record these attempts: nothing is created without its label written first."""
    deployment = app.deployment()
    labels: list[str] = []
    writes: list[Write] = []
    for index, offer in enumerate(offers, start=1):
        label = Label.make(deployment=deployment.id, owner=owner.id, n=owner.n + index, key=deployment.key)
        rental = Rental(
            label=str(label),
            kind=owner.kind,
            account=owner.account,
            instance_id=owner.instance_id,
            instance_key=owner.instance_key,
            provider=offer.provider,
            at=now,
            created_at=now,
            offer=offer,
            image=owner.image,
            disk_gb=owner.disk_gb,
            not_before=now,
            cap_usd_per_hour=offer.cap_usd_per_hour(owner.disk_gb, owner.max_usd_per_hour),
        )
        labels.append(str(label))
        writes.append(Create("rentals", str(label), dump(rental)))
    return labels, writes


def about_to_create(app: App) -> set[tuple[str, str]]:
    """(provider, machine) of attempts that are recorded and not yet made: the market still offers them to everybody."""
    docs = every(app.store, "rentals", [("state", "==", RentalState.CREATING.value)])
    waiting = [record_of(doc, Rental) for doc in docs if doc.data["create_called_at"] is None]
    return {(rental.provider, rental.offer.machine_id) for rental in waiting}


def create_due(app: App, world: World, now: datetime) -> bool:
    """Make the one create call of the first attempt whose time has come. Not once a racer is ready.

    Without a turn at the market the attempt is put off, and nothing is called.
    """
    if any(kept.value.phase for label, kept in world.hosts.items() if label in world.instance.value.race):
        return False
    instance = world.instance.value
    return any(create_if_due(app, kept, instance, now) for kept in world.in_state(RentalState.CREATING))


def create_if_due(app: App, kept: Kept[Rental], instance: Instance | None, now: datetime) -> bool:
    """The create call of one attempt, once, when its time and its turn have come. `instance` = None for the pool's."""
    if kept.value.create_called_at is not None or now < kept.value.not_before:
        return False
    place = _for_boot(app, kept.value, instance)
    try:
        place.take_turn("create")
    except Throttled as refused:
        _put_off(app, kept, kept.value, refused.retry_after_s, now)
    else:
        _create(app, place, kept, instance, now)
    return True


def _for_boot(app: App, rental: Rental, instance: Instance | None) -> Paced:
    """Who recovers goes first, the pool last."""
    urgent = instance is not None and instance.recovering
    priority = Priority.FAILOVER if urgent else Priority.WAKE if instance else Priority.POLL
    return pacing.market(app, rental.provider, priority, who=rental.label)


def _put_off(app: App, kept: Kept[Rental], rental: Rental, wait_s: float, now: datetime) -> None:
    later = now + timedelta(seconds=wait_s)
    app.store.cas(kept.doc, dump(rental.model_copy(update={"not_before": later})))


def _create(app: App, place: Paced, kept: Kept[Rental], instance: Instance | None, now: datetime) -> None:
    """The call is recorded before it is made, so that no one ever makes it again."""
    rental = kept.value.model_copy(update={"create_called_at": now})
    doc = app.store.cas(kept.doc, dump(rental))
    kept = Kept(doc, rental)
    launch = _launch(app, rental, instance, now)
    try:
        provider_id = place.create(rental.offer, launch)
    except MarketUnknown as error:
        app.log("create_unknown", label=rental.label, error=str(error))  # it may exist: the listing will tell
    except MarketError as error:
        refused = rental.to(RentalState.RELEASING, at=now, message=f"{error.code}: {error}")
        exists = error.provider_id if isinstance(error, MarketRefused) else None
        refused = refused.model_copy(update={"provider_id": exists})
        app.store.commit([kept.becomes(refused), *_told(app, instance, "refused", f"{error}", now)])
    else:
        created_at = app.clock()
        meter = Meter().begun(created_at, bills_gpu=rental.offer.gpu_bills_from == "created")
        running = rental.model_copy(update={"provider_id": provider_id, "meter": meter})
        app.store.commit([kept.becomes(running), *_told(app, instance, "rented", _rented(rental), now)])


def _told(app: App, instance: Instance | None, kind: str, text: str, now: datetime) -> list[Write]:
    """A line of the instance's story; the pool has none."""
    return [event(app, instance, kind, text, now)] if instance else []


def _rented(rental: Rental) -> str:
    price = rental.offer.usd_per_hour(rental.disk_gb)
    if rental.is_standby:
        return f"a standby in {rental.offer.machine_id} for {price:.4f} USD/h"
    return f"rented {rental.offer.gpu} on {rental.provider}:{rental.offer.machine_id} for {price:.4f} USD/h"


def _launch(app: App, rental: Rental, instance: Instance | None, now: datetime) -> Launch:
    sha256 = app.settings.bundle_sha256
    if not sha256:
        raise SettingError("DUMONT_BUNDLE_SHA256 is not set: publish the host bundle first (make bundle)")
    env = startup.environment(
        url=app.settings.url,
        label=rental.label,
        bootstrap=_bootstrap(app, rental, now),
        bundle_url=app.objects.presign_get(f"releases/{sha256}", BUNDLE_URL_FOR_S),
        bundle_sha256=sha256,
        probe_url=app.objects.presign_put(PROBE_KEY, Attest.PROBE_UPLOAD_BYTES, BUNDLE_URL_FOR_S),
        glibc_floor=app.settings.bundle_glibc,
        ssh_public_key=instance.spec.ssh_public_key if instance else None,
        kind=rental.kind,
    )
    return Launch(
        label=rental.label,
        image=rental.image,
        disk_gb=rental.disk_gb,
        env=env,
        start_script=startup.standby_script() if rental.is_standby else startup.script(),
        max_usd_per_hour=str(rental.cap_usd_per_hour) if rental.cap_usd_per_hour is not None else None,
        address=instance.address if instance and rental.is_standby else None,
    )


def start(app: App, kept: Kept[Rental], now: datetime) -> None:
    """Have a stopped standby started on its own disk; what came of it, a listing tells."""
    rental = kept.value
    assert app.standbys is not None, "a standby without Google"
    app.store.cas(kept.doc, dump(rental.model_copy(update={"start_called_at": now})))
    if rental.provider_id is None:
        return
    try:
        app.standbys.start(rental.provider_id)
    except (MarketError, NotFound) as error:
        app.log("start_failed", label=rental.label, error=str(error))


def as_lost(rental: Rental, why: str, now: datetime) -> Rental:
    """A machine that we give up: it may still be there, and bills until it is destroyed, once it is retired."""
    return rental.to(RentalState.LOST, at=now, message=why).model_copy(update={"loss": rental.loss or "gone"})


def look_due(app: App, world: World, now: datetime) -> bool:
    """Ask the market once about each new machine: its price is the last word on the cap, its address the user's way in.

    Not every market's create can carry a cap; none wins the instance before it was looked at.
    """
    instance = world.instance.value
    return any(look_if_due(app, kept, instance, now) for kept in world.in_state(RentalState.CREATING))


def look_if_due(app: App, kept: Kept[Rental], instance: Instance | None, now: datetime) -> bool:
    """The look at one new machine. `instance` = None for the pool's."""
    rental, due_at = kept.value, look_due_at(kept.value)
    if rental.provider_id is None or due_at is None or now < due_at:
        return False
    try:
        row = _for_boot(app, rental, instance).get(rental.provider_id)
    except MarketError as error:
        app.log("look_failed", label=rental.label, error=str(error))
        _put_off(app, kept, rental, getattr(error, "retry_after_s", LOOK_AGAIN_S), now)
        return True
    if row is None:
        _put_off(app, kept, rental, LOOK_AGAIN_S, now)
    else:
        app.store.cas(kept.doc, dump(looked_at(rental, row, now)))
    return True


def look_due_at(rental: Rental) -> datetime | None:
    """None once it was looked at, before it exists, and while a listing lacks it: then the sweep asks, and one token a
    minute is too few for two."""
    is_there = rental.provider_id is not None and rental.absent_at is None
    return rental.not_before if is_there and rental.looked_at is None else None


def looked_at(rental: Rental, row: Listed, now: datetime) -> Rental:
    """What a row tells: that it runs. A full one also tells the address and, when first looked at, the price."""
    rental = shown_running(rental, row, now)
    if not row.in_full:
        return rental
    update: dict[str, object] = {"ssh_host": row.ssh_host, "ssh_port": row.ssh_port}
    if rental.looked_at is None:
        stated = Decimal(row.usd_per_hour) if row.usd_per_hour is not None else None
        update |= {"looked_at": now, "stated_usd_per_hour": stated}
    return rental.model_copy(update=update)


def shown_running(rental: Rental, row: Listed, now: datetime) -> Rental:
    """With its GPU's meter begun, by the market's word since when, if a listing is the first to say that it runs (or
    ran, and bills on); it stands still while the machine's host is offline.

    A meter that was ended is left: the listing may be older than the end.
    """
    # a market that bills from the create on bills on
    is_off = row.status == "offline" and rental.offer.gpu_bills_from == "running"
    meter = rental.meter.offline(now) if is_off else rental.meter.online(now)
    rental, is_up = rental.model_copy(update={"meter": meter}), row.status in ("running", "exited")
    if not is_up or meter.gpu_from is not None or meter.disk_until is not None:
        return rental
    runs_since = min(row.runs_since or now, now)
    return rental.model_copy(update={"meter": began(rental).meter.begun(runs_since, bills_gpu=True)})


def _bootstrap(app: App, rental: Rental, now: datetime) -> str:
    longest_s = boot_times(rental.provider, app.settings.timing.boot_timeout_s).pulling_deadline_s
    lifetime = timedelta(seconds=longest_s)
    return auth.bootstrap_token(rental.label, secret=app.settings.jwt_secret, now=now, lifetime=lifetime)


def definite_refusal(rental: Rental) -> str | None:
    """The code of the refusal that ended an attempt, or None."""
    code = rental.message.partition(":")[0]
    known = {kind.code for kind in DEFINITE_REFUSALS}
    return code if rental.state is RentalState.RELEASING and code in known else None


def destroy_due(app: App, kept: Kept[Rental], now: datetime) -> bool:
    """Destroy a retired machine whose id is known, again every `destroy_again_s` until a listing lacks it."""
    rental, due_at = kept.value, destroy_due_at(app, kept.value)
    if rental.provider_id is None or due_at is None or now < due_at:
        return False
    destroy(app, kept, rental.provider_id, now)
    return True


def destroy_due_at(app: App, rental: Rental) -> datetime | None:
    """None while the listing has not told which machine it is, and once a destroy was answered with success.

    Then only a listing that shows it all the same has it destroyed again (`sweep`): who asks for what is gone takes
    the turn of a machine that still bills, and moves the record under the sweep that would find it released.
    """
    if rental.provider_id is None or rental.destroyed_at is not None:
        return None
    called = rental.destroy_called_at
    again = called + timedelta(seconds=app.settings.timing.destroy_again_s) if called else rental.at
    return max(again, rental.not_before)


def destroy(app: App, kept: Kept[Rental], provider_id: str, now: datetime) -> None:
    """One destroy call for a RETIRED label, announced first so that two callers do not make it at once.

    A machine found only by listing is destroyed here too. Without a turn at the market it is put off, and nothing is
    called. Raises `Stale` when somebody else announced it.
    """
    # a machine that comes back after its bill was closed goes on billing: the bill is open again
    rental = kept.value.model_copy(update={"provider_id": provider_id, "settled": False})
    assert not rental.is_live, f"{rental.label} is live"
    place = pacing.market(app, rental.provider, Priority.DESTROY, who=rental.label)
    try:
        place.take_turn("destroy")
    except Throttled as refused:
        _put_off(app, kept, rental, refused.retry_after_s, now)
        return
    app.store.cas(kept.doc, dump(rental.model_copy(update={"destroy_called_at": now, "destroyed_at": None})))
    try:
        was_there = place.destroy(provider_id)
    except MarketError as error:
        app.log("destroy_failed", label=rental.label, error=str(error))
    else:
        _note_end(app, rental, was_there)


def exists(rental: Rental) -> Rental:
    """Its meter as of a machine that is there: begun with the create whose answer was lost or refused it, and open."""
    return began(rental.model_copy(update={"meter": rental.meter.reopened()}))


def began(rental: Rental) -> Rental:
    """Its meter as of a machine that was there at some time; it began with its create at the earliest."""
    if rental.create_called_at is None or rental.provider_id is None:
        return rental
    bills_gpu = rental.offer.gpu_bills_from == "created"
    return rental.model_copy(update={"meter": rental.meter.begun(rental.create_called_at, bills_gpu=bills_gpu)})


def _note_end(app: App, asked: Rental, was_there: bool) -> None:
    """The meter stops when the destroy worked, whatever else was written about the rental meanwhile.

    What was gone already ended with an earlier call whose answer was lost, or before it was retired.
    """
    destroyed_at, ended_at = app.clock(), asked.destroy_called_at or asked.at
    for _ in range(NOTE_ATTEMPTS):
        kept = read(app, "rentals", asked.label, Rental)
        if kept is None:
            return
        try:
            rental = exists(kept.value) if was_there else kept.value
            meter = rental.meter.ended(destroyed_at if was_there else ended_at)
            update = {"meter": meter, "destroyed_at": destroyed_at}
            app.store.cas(kept.doc, dump(kept.value.model_copy(update=update)))
            return
        except Stale:
            continue


def released(rental: Rental, *, late_create_s: float, now: datetime) -> bool:
    """May a retired rental that a listing lacks, made after its record was read, be taken for gone?"""
    if rental.create_called_at is None:
        return True  # the call was never made, and a retired label is never created
    if rental.provider_id is None and definite_refusal(rental) is None:
        return (now - rental.create_called_at).total_seconds() > late_create_s
    return rental.destroy_called_at is not None or rental.loss is not None or definite_refusal(rental) is not None


def note_boot(app: App, label: str, up_for_s: float, failed: str | None, now: datetime) -> Rental | None:
    """The start-up script's first word: since when the machine runs, or why it cannot go on.

    None = nobody wants it any more. Its meter hears the word all the same: what lost a race had run, too.
    """
    kept = read(app, "rentals", label, Rental)
    if kept is None or kept.value.settled:
        return None
    rental = kept.value
    runs_from = max(now - timedelta(seconds=up_for_s), rental.create_called_at or rental.created_at)
    rental = rental.model_copy(update={"meter": rental.meter.running_since(runs_from)})
    if failed and rental.is_live:
        rental = rental.model_copy(update={"loss": "boot_failed", "message": failed})
    if rental != kept.value:
        app.store.cas(kept.doc, dump(rental))
    return rental if rental.is_live else None
