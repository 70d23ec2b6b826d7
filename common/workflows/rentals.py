"""The only place that spends money: label first, one create call per label, destroy until it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from common import auth
from common.domain import startup
from common.domain.instance import Instance
from common.domain.offer import Offer
from common.domain.rental import Label, Meter, Rental, RentalState
from common.errors import (
    MarketError,
    MarketRefused,
    MarketUnknown,
    NoCredit,
    OfferGone,
    SettingError,
    Stale,
    Throttled,
)
from common.ports import App, Cas, Create, Launch, Market, Write
from common.records import Kept, World, dump, event, read

BUNDLE_URL_FOR_S = 3600
NOTE_ATTEMPTS = 5


def market(app: App, provider: str) -> Market:
    if provider not in app.markets:
        raise SettingError(f"no credentials for {provider}: set {provider.upper()}_API_KEY")
    return app.markets[provider]


def plan(
    app: App, kept: Kept[Instance], offers: Sequence[Offer], now: datetime
) -> tuple[list[str], list[Write]]:  # fmt: skip
    """Labels and the writes that record these attempts: nothing is created without its label written first.

    The pacing document of each market gives every attempt its place in the vendor's create interval.
    """
    instance, deployment = kept.value, app.deployment()
    labels: list[str] = []
    writes: list[Write] = []
    slots = _create_slots(app, offers, now, writes)
    for index, (offer, slot) in enumerate(zip(offers, slots, strict=True), start=1):
        label = Label.make(deployment=deployment.id, owner=instance.id, n=instance.n + index, key=deployment.key)
        rental = Rental(
            label=str(label),
            account=instance.account,
            instance_id=instance.id,
            instance_key=instance.key,
            provider=offer.provider,
            at=now,
            created_at=now,
            offer=offer,
            image=instance.spec.image,
            disk_gb=instance.spec.disk_gb,
            not_before=slot,
        )
        labels.append(str(label))
        writes.append(Create("rentals", str(label), dump(rental)))
    return labels, writes


def _create_slots(app: App, offers: Sequence[Offer], now: datetime, writes: list[Write]) -> list[datetime]:
    slots: list[datetime] = []
    free_at: dict[str, datetime] = {}
    docs = {name: app.store.get("pacing", f"{name}.create") for name in {offer.provider for offer in offers}}
    for offer in offers:
        doc = docs[offer.provider]
        start = free_at.get(offer.provider) or (doc.data["next_at"] if doc else now)
        slots.append(max(start, now))
        free_at[offer.provider] = slots[-1] + timedelta(seconds=market(app, offer.provider).create_interval_s)
    for name, next_at in free_at.items():
        doc = docs[name]
        data = {"next_at": next_at}
        writes.append(Cas(doc, data) if doc else Create("pacing", f"{name}.create", data))
    return slots


def create_due(app: App, world: World, now: datetime) -> bool:
    """Make the one create call of the first attempt whose turn has come. Not once a racer is ready."""
    if any(world.hosts[label].phase for label in world.hosts if label in world.instance.value.race):
        return False
    for kept in world.in_state(RentalState.CREATING):
        if kept.value.create_called_at is None and kept.value.not_before <= now:
            _create(app, kept, world.instance.value, now)
            return True
    return False


def _create(app: App, kept: Kept[Rental], instance: Instance, now: datetime) -> None:
    """The call is recorded before it is made, so that no one ever makes it again."""
    rental = kept.value.model_copy(update={"create_called_at": now})
    doc = app.store.cas(kept.doc, dump(rental))
    kept = Kept(doc, rental)
    launch = _launch(app, rental, instance, now)
    try:
        provider_id = market(app, rental.provider).create(rental.offer, launch)
    except MarketUnknown as error:
        app.log("create_unknown", label=rental.label, error=str(error))  # it may exist: the listing will tell
    except MarketError as error:
        refused = rental.to(RentalState.RELEASING, at=now, message=f"{error.code}: {error}")
        exists = error.provider_id if isinstance(error, MarketRefused) else None
        refused = refused.model_copy(update={"provider_id": exists})
        app.store.commit([kept.becomes(refused), event(app, instance, "refused", f"{error}", now)])
    else:
        running = rental.model_copy(
            update={"provider_id": provider_id, "meter": Meter(disk_from=app.clock())}
        )  # fmt: skip
        app.store.commit([kept.becomes(running), event(app, instance, "rented", _rented(rental), now)])


def _rented(rental: Rental) -> str:
    price = rental.offer.usd_per_hour(rental.disk_gb)
    return f"rented {rental.offer.gpu} on {rental.provider}:{rental.offer.machine_id} for {price:.4f} USD/h"


def _launch(app: App, rental: Rental, instance: Instance, now: datetime) -> Launch:
    sha256 = app.settings.bundle_sha256
    if not sha256:
        raise SettingError("DUMONT_BUNDLE_SHA256 is not set: publish the host bundle first (make bundle)")
    env = startup.environment(
        url=app.settings.url,
        label=rental.label,
        bootstrap=auth.bootstrap_token(rental.label, secret=app.settings.jwt_secret, now=now),
        bundle_url=app.objects.presign_get(f"releases/{sha256}", BUNDLE_URL_FOR_S),
        bundle_sha256=sha256,
        glibc_floor=app.settings.bundle_glibc,
        ssh_public_key=instance.spec.ssh_public_key,
    )
    return Launch(
        label=rental.label, image=rental.image, disk_gb=rental.disk_gb, env=env, start_script=startup.script()
    )  # fmt: skip


def definite_refusal(rental: Rental) -> str | None:
    """The code of the refusal that ended an attempt, or None."""
    code = rental.message.partition(":")[0]
    known = {kind.code for kind in (OfferGone, NoCredit, MarketRefused, Throttled)}
    return code if rental.state is RentalState.RELEASING and code in known else None


def destroy_due(app: App, kept: Kept[Rental], now: datetime) -> bool:
    """Destroy a retired machine whose id is known, again every `destroy_again_s` until a listing lacks it."""
    rental, due_at = kept.value, destroy_due_at(app, kept.value)
    if rental.provider_id is None or due_at is None or now < due_at:
        return False
    destroy(app, kept, rental.provider_id, now)
    return True


def destroy_due_at(app: App, rental: Rental) -> datetime | None:
    """None while the listing has not told which machine it is."""
    if rental.provider_id is None:
        return None
    called = rental.destroy_called_at
    return called + timedelta(seconds=app.settings.timing.destroy_again_s) if called else rental.at


def destroy(app: App, kept: Kept[Rental], provider_id: str, now: datetime) -> None:
    """One destroy call for a RETIRED label, announced first so that two callers do not make it at once.

    A machine found only by listing is destroyed here too. Raises `Stale` when somebody else announced it.
    """
    rental = kept.value
    assert not rental.is_live, f"{rental.label} is live"
    # a machine that comes back after its bill was closed goes on billing: the bill is open again
    called = rental.model_copy(update={"destroy_called_at": now, "provider_id": provider_id, "settled": False})
    app.store.cas(kept.doc, dump(called))
    try:
        market(app, rental.provider).destroy(provider_id)
    except MarketError as error:
        app.log("destroy_failed", label=rental.label, error=str(error))
    else:
        _note_end(app, rental.label, app.clock())


def _note_end(app: App, label: str, ended_at: datetime) -> None:
    """The meter stops when the destroy worked, whatever else was written about the rental meanwhile."""
    for _ in range(NOTE_ATTEMPTS):
        kept = read(app, "rentals", label, Rental)
        if kept is None:
            return
        try:
            app.store.cas(kept.doc, dump(kept.value.model_copy(update={"meter": kept.value.meter.ended(ended_at)})))
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
    """The start-up script's first word: since when the machine runs, or why it cannot."""
    kept = read(app, "rentals", label, Rental)
    if kept is None or not kept.value.is_live:
        return None
    rental, gpu_from = kept.value, now - timedelta(seconds=up_for_s)
    if failed:
        rental = rental.model_copy(update={"loss": "boot_failed", "message": failed})
    elif rental.meter.gpu_from is None:
        meter = rental.meter.model_copy(update={"gpu_from": gpu_from, "disk_from": rental.meter.disk_from or gpu_from})
        rental = rental.model_copy(update={"meter": meter})
    app.store.cas(kept.doc, dump(rental))
    return rental
