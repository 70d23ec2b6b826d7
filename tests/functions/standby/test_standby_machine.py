"""The standby's machine and its address: stopped, lost, replaced, given back, and what they cost."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from unittest.mock import Mock

import pytest

from common.domain import standby as rules
from common.domain.address import address_name
from common.domain.instance import Protection, State
from common.domain.ledger import LedgerEntry, to_usd
from common.domain.region import region_of
from common.domain.rental import Rental, RentalState
from common.domain.standby_price import ADDRESS_USD_PER_HOUR
from common.errors import SnapshotRefused
from common.ports import every
from common.records import load
from common.views.instances import events
from common.views.standbys import standbys
from common.workflows import addresses, hibernate, terminate
from common.workflows import standby as standby_steps
from tests.hand_cranked import ACCOUNT, World
from tests.standby_story import lose_standby, mirrored, of, states, wish


def test_the_standby_that_is_stopped_by_google_is_started_again_with_its_address(world: World) -> None:
    id = mirrored(world)
    before = of(world, id)
    world.google.preempt(before.standby, world.now)

    world.until(lambda: before.standby not in world.machines)
    assert world.show(id).state is State.RUNNING
    world.until(lambda: before.standby in world.machines)
    world.pass_time(120)

    after = of(world, id)
    assert (after.standby, after.mirror, after.address) == (before.standby, before.standby, before.address)


def test_a_standby_that_is_lost_leaves_only_after_a_snapshot_and_another_one_takes_its_address(world: World) -> None:
    id = mirrored(world)
    before = of(world, id)
    lose_standby(world, id)

    world.until(lambda: of(world, id).drain == "going")
    assert of(world, id).epoch == before.epoch + 1
    assert world.show(id).protection is Protection.UNPROTECTED
    world.until(lambda: world.show(id).protection is Protection.MIRRORED, within_s=3600)

    after = of(world, id)
    assert after.standby != before.standby
    assert after.address == before.address
    assert after.pointer.taken_epoch > before.epoch


def test_a_terminated_instance_leaves_neither_standby_nor_address(world: World) -> None:
    id = mirrored(world)
    wish(world, id, lambda loaded: terminate.request(world.app, loaded, discard=False, now=world.now))

    world.until(lambda: world.show(id).state is State.TERMINATED)

    world.until(lambda: not world.google.contracts())
    world.until(lambda: not world.standbys.addresses())


def test_an_address_that_is_reserved_late_is_given_back_all_the_same(world: World) -> None:
    id = mirrored(world)
    region = of(world, id).address_region
    wish(world, id, lambda loaded: terminate.request(world.app, loaded, discard=False, now=world.now))
    world.until(lambda: world.show(id).state is State.TERMINATED and not world.standbys.addresses())
    world.standbys.reserve(address_name(world.app.deployment().id, id), region)
    world.pass_time(30)
    assert world.standbys.addresses()

    world.until(lambda: not world.standbys.addresses(), within_s=1200)


def test_an_address_that_a_record_names_is_not_given_back(world: World) -> None:
    id = mirrored(world)
    lose_standby(world, id)
    world.until(lambda: not world.standbys.addresses()[0].used_by)

    assert addresses.sweep(world.app, world.now) == []
    assert world.standbys.addresses()


def test_what_an_address_costs_while_no_machine_holds_it_is_in_the_ledger_once(world: World) -> None:
    id = mirrored(world)
    name, region = address_name(world.app.deployment().id, id), of(world, id).address_region
    for letter in "abcdf":
        world.google.stockout(f"{region}-{letter}", world.now + timedelta(seconds=5400))
    lose_standby(world, id)
    world.pass_time(5400, step_s=5)
    for _ in range(3):
        addresses.sweep(world.app, world.now)
    world.until(lambda: world.standbys.addresses()[0].used_by, within_s=7200, step_s=5)
    world.pass_time(1200, step_s=5)

    entries = ledger(world, name)
    entered = sum((to_usd(entry.micro_usd) for entry in entries), Decimal(0))
    billed = world.google.charges(world.now)[name]["address"]
    assert billed > Decimal("0.0145")
    assert abs(entered - billed) < ADDRESS_USD_PER_HOUR["unused"] * 20 / 60, "two listings, each ten minutes apart"
    assert {entry.account for entry in entries} == {ACCOUNT}


def test_a_standby_that_was_stopped_once_is_not_given_up_while_nobody_can_list_it(world: World) -> None:
    id = mirrored(world)
    before = of(world, id)
    zone = (world.google.contract_of(before.standby) or "").partition("/")[0]
    world.google.preempt(before.standby, world.now)
    world.until(lambda: load(world.app, f"{ACCOUNT}.{id}").standby.value.stopped_at is not None)
    world.google.unreachable.add(zone)

    world.pass_time(rules.STOPPED_MAX_S + 120, step_s=5)

    assert of(world, id).standby == before.standby
    assert before.standby in world.machines
    assert states(world, id)[before.standby] is RentalState.READY


def test_a_standby_that_google_keeps_is_replaced_by_another_one_with_its_address(world: World) -> None:
    id = mirrored(world)
    before = of(world, id)
    zone = (world.google.contract_of(before.standby) or "").partition("/")[0]
    world.google.stockout(zone, world.now + timedelta(days=1))
    world.google.preempt(before.standby, world.now)

    world.until(lambda: of(world, id).standby not in (None, before.standby), within_s=3600)
    world.until(lambda: world.show(id).protection is Protection.MIRRORED, within_s=3600)

    assert of(world, id).address == before.address


def test_a_standby_that_says_nothing_is_metered_from_its_start_though_it_is_listed_later(world: World) -> None:
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.starts_wait = True
    world.until(lambda: bool(world.waiting))
    label = of(world, id).standby or ""
    (vm,) = [vm for vm in world.google.all_contracts() if vm.name == label]
    world.until(lambda: rental_of(world, label).meter.gpu_from is not None)

    meter = rental_of(world, label).meter
    assert world.now > vm.started_at + timedelta(seconds=5), "else a listing came at once, and this shows nothing"
    assert abs(meter.gpu_from - vm.started_at) < timedelta(seconds=0.001)


def rental_of(world: World, label: str) -> Rental:
    doc = world.app.store.get("rentals", label)
    assert doc
    return Rental.model_validate(doc.data)


def test_a_standby_that_never_came_up_is_in_the_ledger_until_it_is_destroyed(world: World) -> None:
    world.standbys_are_mute = True
    id = world.provision()
    world.until(lambda: of(world, id).standby in world.machines)
    label = of(world, id).standby or ""
    world.google.deletes_fail = 100
    world.until(lambda: of(world, id).standby != label)
    world.pass_time(900, step_s=5)
    assert label in world.machines, "its deletes fail, and it bills on"
    world.google.deletes_fail = 0
    world.until(lambda: label not in world.machines, step_s=5)
    world.pass_time(1200, step_s=5)

    entered = sum((to_usd(entry.micro_usd) for entry in ledger(world, label) if entry.kind == "gpu"), Decimal(0))
    bill = world.google.charges(world.now)[label]
    billed = bill["gpu"] + bill["address"]  # which we enter together
    assert billed * Decimal("0.9") < entered < billed * Decimal("1.1")


def ledger(world: World, label: str) -> list[LedgerEntry]:
    found = every(world.app.store, "ledger", [("label", "==", label)])
    return [LedgerEntry.model_validate(doc.data) for doc in found]


def test_an_address_that_google_refuses_is_said_and_asked_for_later_each_time(world: World) -> None:
    world.google.quota_addresses = 0
    asked = Mock(side_effect=world.standbys.reserve)
    world.standbys.reserve = asked
    id = world.provision()

    world.pass_time(1800, step_s=2)

    assert "the next is rented at" in standbys(world.app, ACCOUNT, world.now)[0].why
    assert "STATIC_ADDRESSES" in "".join(line.text for line in events(world.app, ACCOUNT, id))
    assert asked.call_count < 10
    world.google.quota_addresses = None
    world.until(lambda: world.show(id).protection is Protection.MIRRORED, within_s=3600)


def test_a_standby_that_could_not_be_had_for_weeks_is_tried_again_every_hour(world: World) -> None:
    id = mirrored(world)
    tried(world, id, standby_tries=1024)
    lose_standby(world, id)

    world.until(lambda: of(world, id).standby_tries == 1025, within_s=2400)

    not_before = of(world, id).standby_not_before
    assert not_before is not None
    assert (not_before - world.now).total_seconds() == rules.TRIES_PAUSE_MAX_S


def test_snapshots_that_failed_for_days_are_tried_again_and_the_host_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = mirrored(world)
    tried(world, id, snapshot_failures=1024)
    refusing = Mock(side_effect=SnapshotRefused("the bucket is full"))
    monkeypatch.setattr(hibernate, "verified", refusing)

    world.until(lambda: of(world, id).snapshot_failures == 1026, within_s=3600)

    assert world.show(id).state is State.RUNNING


def tried(world: World, id: str, **changes: object) -> None:
    """As after so many tries in a row."""
    kept = load(world.app, f"{ACCOUNT}.{id}").instance
    world.app.store.commit([kept.becomes(kept.value.having(**changes))])


def test_a_gpu_far_from_the_address_has_a_standby_where_the_address_is(world: World) -> None:
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    gpu = load(world.app, f"{ACCOUNT}.{id}").writer.value

    offers = standby_steps._offers(world.app, of(world, id).having(address_region="australia-southeast1"), gpu)

    assert {region_of(offer.machine_id) for offer in offers} == {"australia-southeast1"}
