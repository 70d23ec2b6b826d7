"""The standby's machine and its address: rented near the GPU, started again when Google stopped it, let go when no
longer needed.

Every function is a step of the lifecycle: it moves one thing by one guarded commit, or makes one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from common.domain import standby as rules
from common.domain.address import AddressRecord, address_name
from common.domain.instance import Instance, Want
from common.domain.offer import Offer
from common.domain.outbox import Kind
from common.domain.region import place_of_machine, region_of
from common.domain.reliability import Outcome
from common.domain.rental import Rental, RentalState
from common.domain.standby_price import offers_in, standby_offers
from common.errors import Exists, MarketError, MarketKeyRefused, MarketRefused, NoCredit, QuotaExceeded
from common.ports import App, Write
from common.records import Kept, World, dump, event
from common.workflows import conflicts, rentals
from common.workflows.history import ends, retire
from common.workflows.outbox import announce

ADDRESS_AGAIN_S = 5.0
"""An address that is still being reserved, or about which nothing was said, is asked for again."""
NO_ADDRESS = (NoCredit, MarketRefused, MarketKeyRefused, QuotaExceeded)
"""Refusals of an address that do not pass within seconds."""
START_AGAIN_S = 60.0


def plan(app: App, world: World, now: datetime) -> bool:
    """An instance that runs gets its standby: near its GPU, the label first."""
    instance, writer = world.instance.value, world.writer
    is_due = instance.standby_not_before is None or now >= instance.standby_not_before
    if app.standbys is None or instance.standby or writer is None or not is_due:
        return False
    if not (rules.is_wanted(instance) and instance.is_running):
        return False
    offers = _offers(app, instance, writer.value)
    if not offers:
        return False
    offer = offers[instance.standby_tries % len(offers)]
    label, writes = rentals.plan_standby(app, world.instance, offer, now)
    region = region_of(offer.machine_id)
    planned = instance.having(
        n=instance.n + 1, standby=label, door=None, standby_not_before=None, address_region=region
    )
    text = f"a standby in {offer.machine_id} for {offer.usd_per_hour(instance.spec.disk_gb):.4f} USD/h"
    app.store.commit([world.instance.becomes(planned), *writes, event(app, instance, "standby", text, now)])
    return True


def _offers(app: App, instance: Instance, gpu: Rental) -> Sequence[Offer]:
    """Near the GPU, the best first. Who has an address keeps it, and with it the region, however far the GPU is now."""
    if instance.address_region is not None:
        return offers_in(instance.address_region)
    place = place_of_machine(gpu.offer, app.country_of_ip, gpu.ssh_host)
    return () if place is None else standby_offers(place, instance.spec.disk_gb)


def reserve_address(app: App, world: World, now: datetime) -> bool:
    """The instance's address, before the machine that takes it. Where it stands is written already."""
    instance, kept = world.instance.value, world.standby
    if app.standbys is None or instance.address or instance.address_region is None or kept is None:
        return False
    if kept.value.state is not RentalState.CREATING or now < kept.value.not_before:
        return False
    name = address_name(app.deployment().id, instance.id)
    _write_down(app, name, instance)
    try:
        address = app.standbys.reserve(name, instance.address_region)
    except NO_ADDRESS as refused:
        _refuse(app, instance, kept, refused, now)
        return True
    except MarketError as error:
        app.log("reserve_failed", instance=instance.id, error=str(error))
        address = None
    if address is None or address.ip is None:
        later = kept.value.model_copy(update={"not_before": now + timedelta(seconds=ADDRESS_AGAIN_S)})
        app.store.cas(kept.doc, dump(later))
    else:
        app.store.commit([world.instance.becomes(instance.having(address=address.ip))])
    return True


def _refuse(app: App, instance: Instance, kept: Kept[Rental], why: MarketError, now: datetime) -> None:
    """Without an address it is never created: as after a refused create, the next one is planned later each time."""
    refused = kept.value.to(RentalState.RELEASING, at=now, message=f"{why.code}: {why}")
    app.store.commit([kept.becomes(refused), event(app, instance, "refused", str(why), now)])


def _write_down(app: App, name: str, instance: Instance) -> None:
    record = AddressRecord(account=instance.account, instance_key=instance.key)
    with contextlib.suppress(Exists):
        app.store.create("addresses", name, dump(record))


def release_address(app: App, world: World, now: datetime) -> bool:
    """Given back once no standby is there or wanted; that it is given back is written afterwards."""
    instance = world.instance.value
    is_unwanted = instance.want is Want.GONE or not instance.spec.standby
    if app.standbys is None or instance.address_region is None or not is_unwanted or instance.standby is not None:
        return False
    if any(kept.value.state is not RentalState.RELEASED for kept in world.standbys.values()):
        return False
    try:
        app.standbys.release(address_name(app.deployment().id, instance.id), instance.address_region)
    except MarketError as error:
        app.log("release_failed", instance=instance.id, error=str(error))
        return False
    free = instance.having(address=None, address_region=None)
    app.store.commit([world.instance.becomes(free), event(app, instance, "standby", "its address is given back", now)])
    return True


def create(app: App, world: World, now: datetime) -> bool:
    """The one create call of a standby, once its address is known and nobody holds it any more."""
    kept = world.standby
    if kept is None or kept.value.state is not RentalState.CREATING or world.instance.value.address is None:
        return False
    others = [other.value for label, other in world.standbys.items() if label != kept.value.label]
    if any(other.provider_id and other.state is not RentalState.RELEASED for other in others):
        return False
    return rentals.create_if_due(app, kept, world.instance.value, now)


def note_ready(app: App, world: World, now: datetime) -> bool:
    """creating -> ready: its host reports, and says where GPUs may dial in."""
    instance, kept = world.instance.value, world.standby
    host = world.host(instance.standby)
    if kept is None or host is None or host.phase is None or host.door is None or kept.value.state is RentalState.LOST:
        return False
    is_new, has_moved = kept.value.state is RentalState.CREATING, instance.door != host.door
    if not (is_new or has_moved):
        return False
    ready = instance.having(door=host.door, standby_tries=0)
    writes: list[Write] = [world.instance.becomes(ready)]
    if is_new:
        moved = kept.value.to(RentalState.READY, at=now).model_copy(update={"ready_at": now})
        writes.append(kept.becomes(moved))
        writes.append(event(app, instance, "standby", "the standby is up", now))
    app.store.commit(writes)
    return True


def note_keys(app: App, world: World, _now: datetime) -> bool:
    """A GPU says by which key it dials its standby."""
    instance = world.instance.value
    if instance.standby is None:
        return False
    dialling = [label for label in (instance.writer, instance.cand) if label and label != instance.standby]
    keys = {label: host.tunnel_key for label in dialling if (host := world.host(label)) and host.tunnel_key}
    if keys == instance.tunnel_keys or not keys:
        return False
    app.store.commit([world.instance.becomes(instance.having(tunnel_keys=keys))])
    return True


def start_again(app: App, world: World, now: datetime) -> bool:
    """Google stopped it and kept its disk: it is started again, the same machine with the same address."""
    kept = world.standby
    if kept is None or kept.value.stopped_at is None or rules.is_lost(kept.value):
        return False
    called = kept.value.start_called_at
    if called is not None and (now - called).total_seconds() < START_AGAIN_S:
        return False
    rentals.start(app, kept, now)
    return True


def give_up_late(app: App, world: World, now: datetime) -> bool:
    """Not up for too long after its create: it holds nothing, counts as lost, and its successor takes the address."""
    kept, timing = world.standby, app.settings.timing
    if kept is None or kept.value.state is not RentalState.CREATING:
        return False
    rental, called = kept.value, kept.value.create_called_at
    is_late = called is not None and (now - called).total_seconds() > timing.boot_timeout_s
    if not (is_late or rental.loss):
        return False
    app.store.cas(kept.doc, dump(rentals.as_lost(rental, "it did not come up", now)))
    return True


def let_go(app: App, world: World, now: datetime) -> bool:
    """A standby that is lost, refused or not wanted, and is nobody's mirror and not the writer: retired at once."""
    instance = world.instance.value
    if instance.standby is None or instance.standby in (instance.writer, instance.mirror):
        return False
    kept, host = world.standby, world.host(instance.standby)
    is_gone = rules.is_lost(kept.value if kept else None)
    is_unwanted = not instance.spec.standby or instance.drain is not None or instance.want is Want.GONE
    if not is_gone and not is_unwanted:
        return False
    if host is not None and host.claim is not None and rules.may_take_over(instance, host.claim):
        return False
    if not is_gone and instance.want is not Want.GONE and conflicts.is_refused_unsaved(app, world, now):
        return False
    failed = is_gone and instance.want is not Want.GONE and instance.spec.standby
    free = instance.having(
        standby=None,
        # one that never came up may have been refused for its address: that is asked for anew
        address=None if instance.door is None else instance.address,
        door=None,
        drain=None,
        refusal_tries=0,
        tunnel_keys={},
        standby_tries=instance.standby_tries + failed,
        standby_not_before=rules.next_try_at(instance, now) if failed else None,
    )
    writes = retire(app, ends([kept] if kept else [], Outcome.CANCELLED, "the standby is let go"), now)
    text = "the standby is lost: unprotected until there is another" if is_gone else "the standby is let go"
    app.store.commit([*writes, world.instance.becomes(free), *_told(app, instance, text, now, lost=is_gone)])
    return True


def _told(app: App, instance: Instance, text: str, now: datetime, *, lost: bool) -> list[Write]:
    if lost:
        return announce(app, instance, Kind.UNPROTECTED, "unprotected", text, now)
    return [event(app, instance, "standby", text, now)]


def due_at(world: World) -> datetime | None:
    """When the clock alone makes a step of the standby's machine due."""
    kept = world.standby
    waits = kept is not None and kept.value.state is RentalState.CREATING and world.instance.value.address is None
    return kept.value.not_before if kept is not None and waits else None
