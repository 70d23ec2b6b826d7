"""The GPU dies and the user keeps working: the records' side of it, on a clock that only the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from common.adapters.s3 import S3
from common.domain import orders as rules_of_orders
from common.domain import standby as rules
from common.domain.host import HostPhase, HostRecord, OrderResult, Sync
from common.domain.instance import Instance, Phase, Protection, State
from common.domain.ledger import LedgerEntry, to_usd
from common.domain.region import region_of
from common.domain.rental import RentalState
from common.domain.role import View
from common.domain.standby_price import ADDRESS_USD_PER_HOUR
from common.domain.version import Version
from common.domain.watch import FIRST_BEAT_S
from common.host.epoch import Epoch, Fenced
from common.ports import every
from common.records import load
from common.views.standbys import DEAF, standbys
from common.workflows import addresses, hibernate, lifecycle, mirror, restore, terminate
from common.workflows import standby as standby_steps
from infra.demo.s3_server import S3Server
from tests.hand_cranked import ACCOUNT, Machine, World


@pytest.fixture
def world(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects, with_google=True)
    yield made
    made.close()


def mirrored(world: World) -> str:
    """An instance that runs on a GPU and is mirrored."""
    id = world.provision()
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    return id


def of(world: World, id: str) -> Instance:
    return world.record(id)


def standby(world: World, id: str) -> Machine:
    return world.machines[of(world, id).standby or ""]


def write(world: World, id: str, name: str, text: str) -> None:
    (world.workspace(id) / name).write_text(text)


def lose_gpu(world: World, id: str) -> str:
    """The GPU's machine is gone from one second to the next; its label."""
    label = of(world, id).writer or ""
    row = next(c for c in world.sim.contracts() if c.label == label)
    world.sim.lose(row.id, world.now)
    return label


def lose_standby(world: World, id: str) -> None:
    world.google.lose(world.google.contract_of(of(world, id).standby), world.now)


def wish(world: World, id: str, what) -> None:
    what(load(world.app, f"{ACCOUNT}.{id}"))
    lifecycle.hint(world.app, f"{ACCOUNT}.{id}")


def states(world: World, id: str) -> dict[str, RentalState]:
    return {kept.value.label: kept.value.state for kept in load(world.app, f"{ACCOUNT}.{id}").machines}


def test_an_instance_gets_a_standby_near_its_gpu_and_its_address_stays(world: World) -> None:
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    shown = world.show(id)
    assert shown.protection is not Protection.MIRRORED

    world.until(lambda: world.show(id).protection is Protection.MIRRORED)

    shown, record = world.show(id), of(world, id)
    assert shown.address is not None
    assert (shown.address.kind, shown.address.host) == ("standby", record.address)
    assert record.mirror == record.standby
    assert record.writer != record.standby
    (address,) = world.standbys.addresses()
    assert address.ip == record.address


def test_the_gpu_dies_and_the_user_works_on_until_another_gpu_has_everything(world: World) -> None:
    id = mirrored(world)
    write(world, id, "paper.txt", "written on the GPU\n")
    world.pass_time(2)
    before = of(world, id)
    lost = lose_gpu(world, id)

    took_s = world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert took_s < 10, "the claim comes with the standby's next words, not with the market's listing"
    on_standby = of(world, id)
    assert on_standby.writer == before.standby
    assert on_standby.epoch == before.epoch + 1
    assert on_standby.held == lost
    assert (world.workspace(id) / "paper.txt").read_text() == "written on the GPU\n"
    assert world.show(id).address.host == before.address

    write(world, id, "paper.txt", "written on the standby\n")
    world.until(lambda: of(world, id).cand is not None)
    world.until(lambda: world.show(id).state is State.RUNNING)

    back = of(world, id)
    assert back.writer not in (lost, before.standby)
    assert back.mirror == before.standby
    assert back.epoch == before.epoch + 2
    assert (world.workspace(id) / "paper.txt").read_text() == "written on the standby\n"
    world.until(lambda: lost not in states(world, id) or states(world, id)[lost] is RentalState.RELEASED)


def test_a_gpu_that_is_only_cut_off_is_held_until_a_snapshot_of_the_standby_covers_it(world: World) -> None:
    id = mirrored(world)
    gpu = of(world, id).writer or ""
    world.machines[gpu].cut = True

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    assert states(world, id)[gpu] is RentalState.HELD
    pointer = of(world, id).pointer

    world.until(lambda: states(world, id).get(gpu) is not RentalState.HELD)
    assert of(world, id).pointer != pointer
    assert of(world, id).is_covered


def test_a_gpu_that_comes_back_is_held_still_and_cannot_write(world: World) -> None:
    id = mirrored(world)
    label = of(world, id).writer or ""
    gpu = world.machines[label]
    gpu.cut = True
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    on_standby = world.workspace(id) / "later.txt"
    on_standby.write_text("of the standby\n")

    gpu.cut = False
    (gpu.agent.workspace / "later.txt").write_text("of the fenced GPU\n")
    world.pass_time(10)

    assert gpu.writers.frozen or label not in world.machines
    assert on_standby.read_text() == "of the standby\n"


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


def test_both_die_and_the_newest_snapshot_comes_back(world: World) -> None:
    id = mirrored(world)
    write(world, id, "kept.txt", "in the snapshot\n")
    world.until(lambda: of(world, id).pointer is not None)
    first = of(world, id).pointer
    world.until(lambda: of(world, id).pointer != first, within_s=2400)
    lose_standby(world, id)
    lose_gpu(world, id)

    world.until(lambda: world.show(id).state is not State.RUNNING)
    world.until(lambda: world.show(id).state is State.RUNNING, within_s=3600)

    assert (world.workspace(id) / "kept.txt").read_text() == "in the snapshot\n"


def test_the_standby_dies_before_its_first_snapshot_and_the_role_goes_back(world: World) -> None:
    id = mirrored(world)
    before = of(world, id)
    gpu = world.machines[before.writer or ""]
    gpu.cut = True
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.machines[before.standby or ""].cut = True  # before it has reported a snapshot
    lose_standby(world, id)
    gpu.cut = False

    world.until(lambda: of(world, id).phase is Phase.UP)

    assert of(world, id).writer == before.writer
    assert of(world, id).start == "keep"
    world.until(lambda: world.show(id).state is State.RUNNING)
    assert not gpu.writers.frozen


def test_the_user_moves_to_the_standby_and_back(world: World) -> None:
    id = mirrored(world)
    write(world, id, "work.txt", "here\n")
    world.pass_time(2)
    wish(world, id, lambda loaded: mirror.request_failover(world.app, loaded, now=world.now))

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    assert (world.workspace(id) / "work.txt").read_text() == "here\n"
    world.until(lambda: of(world, id).cand is not None)
    wish(world, id, lambda loaded: mirror.request_hand_back(world.app, loaded, now=world.now))

    world.until(lambda: world.show(id).state is State.RUNNING)
    assert (world.workspace(id) / "work.txt").read_text() == "here\n"


def test_an_instance_hibernates_from_its_standby_and_wakes_with_what_was_written_there(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    write(world, id, "last.txt", "of the standby\n")
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))

    world.until(lambda: world.show(id).state is State.HIBERNATED)
    assert of(world, id).standby is not None
    wish(world, id, lambda loaded: restore.request_wake(world.app, loaded, world.now))
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    assert (world.workspace(id) / "last.txt").read_text() == "of the standby\n"


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
    world.standbys.reserve(standby_steps.address_name(world.app, of(world, id)), region)
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
    name, region = standby_steps.address_name(world.app, of(world, id)), of(world, id).address_region
    for letter in "abcdf":
        world.google.stockout(f"{region}-{letter}", world.now + timedelta(seconds=5400))
    lose_standby(world, id)
    world.pass_time(5400)
    for _ in range(3):
        addresses.sweep(world.app, world.now)
    world.until(lambda: world.standbys.addresses()[0].used_by, within_s=7200)
    world.pass_time(1200)

    found = every(world.app.store, "ledger", [("instance_key", "==", of(world, id).key)])
    entries = [entry for entry in map(LedgerEntry.model_validate, (doc.data for doc in found)) if entry.label == name]
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

    world.pass_time(rules.STOPPED_MAX_S + 120)

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


def test_a_gpu_far_from_the_address_has_a_standby_where_the_address_is(world: World) -> None:
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    gpu = load(world.app, f"{ACCOUNT}.{id}").writer.value

    offers = standby_steps._offers(world.app, of(world, id).having(address_region="australia-southeast1"), gpu)

    assert {region_of(offer.machine_id) for offer in offers} == {"australia-southeast1"}


def test_nothing_is_taken_while_a_snapshot_is_put_in_place(tmp_path: Path) -> None:
    """What came meanwhile would be overwritten by the snapshot, and counted as there."""
    candidate = Epoch(tmp_path, "gpu")
    candidate.hear(View(rev=1, epoch=2, writer="standby", standby="standby", cand="gpu"))
    candidate.fill(is_on=True)
    with pytest.raises(Fenced), candidate.taking(2, "standby"):
        pass

    candidate.restored(Version(epoch=1, seq=7))
    with candidate.taking(2, "standby") as done:
        done(1, True)
    assert candidate.read().is_whole


def test_a_whole_copy_stays_one_while_the_next_epoch_is_compared(tmp_path: Path) -> None:
    """Its GPU may die before that is over: the standby takes over with what it had, and says so."""
    mirror = Epoch(tmp_path, "standby")
    mirror.hear(View(rev=1, epoch=1, writer="gpu", mirror="standby", standby="standby"))
    with mirror.taking(1, "gpu") as done:
        done(9, True)
    mirror.hear(View(rev=2, epoch=2, writer="gpu", mirror="standby", standby="standby", is_draining=True))

    with mirror.taking(2, "gpu") as done:
        done(1, False)

    claim = mirror.seal()
    assert (claim.epoch, claim.version) == (2, Version(epoch=1, seq=9)), "no newer than what is whole"


def test_a_copy_of_a_life_that_was_restored_over_is_whole_only_when_compared(tmp_path: Path) -> None:
    mirror = Epoch(tmp_path, "standby")
    mirror.restored(Version(epoch=1, seq=9))
    mirror.hear(View(rev=2, epoch=3, writer="gpu", mirror="standby", standby="standby"))
    with mirror.taking(3, "gpu") as done:
        done(1, False)
    assert not mirror.read().is_whole

    with mirror.taking(3, "gpu") as done:
        done(2, True)
    assert mirror.read().is_whole


def test_a_standby_that_wrote_is_of_its_own_epoch_when_the_gpu_is_back_and_dies_at_once(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    write(world, id, "paper.txt", "written on the standby\n")
    label = of(world, id).standby or ""
    world.until(lambda: of(world, id).phase is Phase.UP)
    world.unlinked.add(frozenset({of(world, id).writer or "", label}))
    lose_gpu(world, id)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert (world.workspace(id) / "paper.txt").read_text() == "written on the standby\n"


def behind(world: World) -> tuple[str, str, bytes]:
    """A GPU died when its snapshot had more than its standby, and the bucket lost it: (id, key, manifest)."""
    id = mirrored(world)
    world.links[of(world, id).writer or ""].holds_back = True
    write(world, id, "paper.txt", "in the snapshot alone\n")
    before = of(world, id).pointer
    world.until(lambda: of(world, id).pointer not in (None, before))
    key = (of(world, id).pointer or before).manifest_key  # type: ignore[union-attr]
    manifest = world.objects.get(key)
    world.objects.delete([key])
    lose_gpu(world, id)
    world.until(lambda: (standby_host(world, id).progress.last or DONE).id.startswith("rewind"))
    assert of(world, id).writer != of(world, id).standby
    return id, key, manifest


def standby_host(world: World, id: str) -> HostRecord:
    host = load(world.app, f"{ACCOUNT}.{id}").host(of(world, id).standby)
    assert host
    return host


DONE = OrderResult(id="none", ok=True)


def test_a_standby_that_could_not_get_what_it_lacks_tries_again(world: World) -> None:
    id, key, manifest = behind(world)
    world.objects.put(key, manifest)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert (world.workspace(id) / "paper.txt").read_text() == "in the snapshot alone\n"


def test_a_standby_that_cannot_get_what_it_lacks_leaves_it_to_a_gpu_that_restores_the_pointer(world: World) -> None:
    id, key, manifest = behind(world)
    lost = of(world, id).writer
    world.until(lambda: rules_of_orders.is_rewind_failed(of(world, id), standby_host(world, id)))
    world.objects.put(key, manifest)

    world.until(lambda: of(world, id).writer not in (lost, None) and world.show(id).state is State.RUNNING)

    assert of(world, id).writer != of(world, id).standby
    assert (world.workspace(id) / "paper.txt").read_text() == "in the snapshot alone\n"
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    assert (standby(world, id).agent.workspace / "paper.txt").read_text() == "in the snapshot alone\n"


def test_a_snapshot_that_could_not_be_put_in_place_leaves_nothing_whole(tmp_path: Path) -> None:
    candidate = Epoch(tmp_path, "gpu")
    candidate.restored(Version(epoch=1, seq=7))
    candidate.fill(is_on=True)
    candidate.fill(is_on=False)
    assert not candidate.read().is_whole


@pytest.mark.parametrize("on_the_way", [0, 1])
def test_the_role_goes_back_only_when_nothing_is_on_its_way(world: World, on_the_way: int) -> None:
    id = mirrored(world)
    over = of(world, id).having(cand="gpu", standby="standby", epoch=5, phase=Phase.HANDOVER)
    common = {"account": ACCOUNT, "instance_id": id, "instance_key": over.key, "last_seen_at": world.now}
    sent = Sync(epoch=5, seq=3, is_whole=True, peer="gpu", backlog_files=on_the_way)
    frozen = HostRecord(label="standby", phase=HostPhase.FROZEN, fz="gpu", sync=sent, **common)
    taken = Sync(epoch=5, seq=3, is_whole=True, peer="standby")
    candidate = HostRecord(label="gpu", phase=HostPhase.READY, sync=taken, **common)

    assert rules.is_equal(over, frozen, candidate) is (on_the_way == 0)


def test_a_standby_before_a_firewall_that_lets_no_heartbeat_in_never_takes_over_and_says_why(world: World) -> None:
    id = world.provision()
    world.until(lambda: of(world, id).standby in world.links)
    link = world.links[of(world, id).standby or ""]
    link.is_deaf = True
    world.until(lambda: standbys(world.app, ACCOUNT, world.now)[0].why == DEAF)

    world.pass_time(FIRST_BEAT_S + 60)
    assert world.show(id).state is State.RUNNING
    assert world.show(id).protection is not Protection.MIRRORED

    link.is_deaf = False
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)


@pytest.mark.parametrize("hears", [True, False])
def test_a_standby_that_does_not_hear_its_gpu_is_no_mirror_of_it(world: World, hears: bool) -> None:
    id = mirrored(world)
    instance = of(world, id)
    common = {"account": ACCOUNT, "instance_id": id, "instance_key": instance.key, "last_seen_at": world.now}
    whole = Sync(epoch=instance.epoch, seq=3, is_whole=True)
    sent, taken = (whole.model_copy(update={"peer": peer}) for peer in (instance.standby, instance.writer))
    gpu = HostRecord(label=instance.writer, phase=HostPhase.READY, sync=sent, **common)
    standby = HostRecord(
        label=instance.standby, phase=HostPhase.READY, sync=taken.model_copy(update={"hears": hears}), **common
    )

    assert rules.may_attach(instance.having(mirror=None), gpu, standby) is hears


def test_without_googles_credentials_everything_else_works(
    tmp_path: Path, s3_on_loopback: S3Server, objects: S3
) -> None:
    world = World(tmp_path, s3_on_loopback, objects)
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.pass_time(120)
    assert world.show(id).protection is Protection.UNPROTECTED
    assert world.show(id).address.kind == "direct"
    world.close()


def test_a_standby_that_was_cut_off_for_hours_is_still_heard_and_takes_over(world: World) -> None:
    id = mirrored(world)
    write(world, id, "kept.txt", "on both\n")
    world.pass_time(2)
    label = of(world, id).standby or ""
    world.machines[label].cut = True
    world.pass_time(2 * 3600, step_s=10)  # longer than a GPU's token may be renewed
    world.machines[label].cut = False
    lose_gpu(world, id)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    assert (world.workspace(id) / "kept.txt").read_text() == "on both\n"


def test_a_standby_that_vanishes_while_it_writes_is_missed_within_minutes(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.until(lambda: of(world, id).is_covered)
    lose_standby(world, id)

    took_s = world.until(lambda: not of(world, id).is_on_standby, within_s=1200)
    assert took_s < 600
