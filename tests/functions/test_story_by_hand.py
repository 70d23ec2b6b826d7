"""The same story on a hand-cranked clock with the production defaults."""

from __future__ import annotations

import pytest

from common.domain.instance import State
from common.domain.rental import Rental, RentalState
from common.records import load, manifest_key_of
from common.snapshots.engine import load_manifest
from common.workflows import hibernate, hosts, lifecycle, restore, terminate
from infra.demo.material import look
from jobs import hibernate_idle
from tests.functions.conftest import Api
from tests.hand_cranked import ACCOUNT, World


def running(world: World, **spec: object) -> str:
    id = world.provision(**spec)
    world.until(lambda: world.show(id).state is State.RUNNING)
    return id


def write(world: World, id: str, text: str = "worth keeping\n") -> None:
    (world.workspace(id) / "notes.txt").write_text(text)


def ask(world: World, id: str, verb: str) -> None:
    key = f"{ACCOUNT}.{id}"
    loaded = load(world.app, key)
    if verb == "wake":
        restore.request_wake(world.app, loaded, world.now)
    elif verb == "hibernate":
        hibernate.request(world.app, loaded, reason="asked", now=world.now)
    elif verb == "restore":
        restore.request_restore(world.app, loaded, world.now)
    else:
        terminate.request(world.app, loaded, discard=verb == "discard", now=world.now)
    lifecycle.hint(world.app, key)


def rentals(world: World, id: str) -> list[Rental]:
    docs = world.store.query("rentals", [("instance_key", "==", f"{ACCOUNT}.{id}")])
    return [Rental.model_validate(doc.data) for doc in docs]


def test_an_idle_gpu_is_hibernated_after_its_window_and_never_before(world: World) -> None:
    id = running(world)
    write(world, id)
    world.pass_time(60)
    world.writer(id).set_gpu(0)

    world.pass_time(170)
    assert world.show(id).state is State.RUNNING
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=300)

    assert world.sim.contracts() == []
    assert world.show(id).snapshot is not None


def test_a_gpu_whose_telemetry_is_missing_is_never_idle(world: World) -> None:
    id = running(world)
    world.writer(id).gpu.unlink()

    world.pass_time(900, step_s=5)

    assert world.show(id).state is State.RUNNING


def test_a_hibernated_instance_wakes_byte_identical_on_another_machine(world: World) -> None:
    id = running(world)
    write(world, id)
    tree, first = look(world.workspace(id)), world.record(id).writer
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)

    ask(world, id, "wake")
    world.until(lambda: world.show(id).state is State.RUNNING)

    assert look(world.workspace(id)) == tree
    assert world.record(id).writer != first


@pytest.mark.parametrize("fault", ["lose", "outbid", "cut"])
def test_a_lost_machine_is_replaced_from_the_newest_verified_snapshot(world: World, fault: str) -> None:
    id = running(world)
    write(world, id)
    tree, lost = look(world.workspace(id)), world.record(id).writer
    assert lost
    world.until(lambda: world.show(id).snapshot is not None)
    machine, contract = world.writer(id), world.sim.contract_of(lost)
    assert contract
    if fault == "cut":
        machine.cut = True
    else:
        getattr(world.sim, fault)(contract, world.now)
        world._carry_out()

    world.until(lambda: world.record(id).writer not in (lost, None))
    world.until(lambda: world.show(id).state is State.RUNNING)

    assert look(world.workspace(id)) == tree
    assert world.record(id).writer != lost


def test_a_silent_machine_is_held_until_a_snapshot_of_the_new_epoch_covers_it(world: World) -> None:
    id = running(world)
    write(world, id)
    world.until(lambda: world.show(id).snapshot is not None)
    silent = world.record(id).writer
    world.writer(id).cut = True

    world.until(lambda: world.show(id).state is State.RUNNING and world.record(id).writer != silent)
    states = {rental.label: rental.state for rental in rentals(world, id)}
    assert states[silent or ""] is RentalState.HELD

    world.until(lambda: world.record(id).held is None, within_s=1500)
    world.until(lambda: world.sim.contract_of(silent or "") is None)


def test_a_race_starts_no_further_racer_once_one_is_ready(world: World) -> None:
    id = running(world, strategy="race")

    world.until(lambda: sum(r.state is RentalState.RELEASED for r in rentals(world, id)) == 4, within_s=300)

    created = [rental for rental in rentals(world, id) if rental.create_called_at]
    assert len(rentals(world, id)) == 5
    assert len(created) < 5
    assert len(world.sim.contracts()) == 1


def test_a_race_tells_the_seconds_and_the_dollars_of_its_losers(world: World) -> None:
    world.sim.slow_boots(12)
    id = running(world, strategy="race")
    world.until(lambda: len(world.sim.contracts()) == 1)

    race = world.show(id).race
    assert race
    losers = {loser.label: loser for loser in race.losers}
    bills = {c.label: sum(world.sim.billed(c.id, world.now).values()) for c in world.sim.all_contracts()}
    assert race.winner == world.record(id).writer
    assert set(losers) == set(bills) - {race.winner}
    assert 0 < len(losers) < 4, "one is created every 4.5 s, none once one is ready"
    assert race.ready_after_s > 0
    for label, loser in losers.items():
        rental = next(rental for rental in rentals(world, id) if rental.label == label)
        assert loser.seconds > 0
        assert abs(loser.usd - bills[label]) <= rental.usd_per_second("gpu") + rental.usd_per_second("disk")


def test_a_late_report_of_an_idle_gpu_does_not_stop_one_that_is_busy_now(world: World) -> None:
    id = running(world)
    machine = world.writer(id)
    machine.set_gpu(0)
    world.pass_time(150)
    late = machine.agent._heartbeat(world.now)
    machine.set_gpu(80)
    world.pass_time(60)

    assert late.idle_since
    hosts.receive(world.app, late, machine.agent.memory.token, world.now)
    hibernate_idle.run(world.app)
    world.pass_time(60)

    assert world.show(id).state is State.RUNNING


def test_a_machine_that_is_cut_off_saves_its_work_and_stops_itself(world: World) -> None:
    """Rule R10: with the credentials it has, by its container's own key, and it never destroys."""
    id = running(world, snapshot_every_s=86_400)
    write(world, id)
    world.until(lambda: world.record(id).snapshot_due_from is not None)
    ask(world, id, "hibernate")
    ask(world, id, "wake")
    world.pass_time(120)
    machine, prefix = world.writer(id), f"instances/{ACCOUNT}.{id}/manifests/"
    before = len(list(world.objects.list(prefix)))
    machine.cut = True
    machine.agent.memory = machine.agent.memory.model_copy(update={"dead_man_s": 60})

    world.pass_time(100)

    contract = world.sim.contract_of(machine.agent.label)
    assert machine.writers.frozen
    assert len(list(world.objects.list(prefix))) == before + 1
    assert [c.state for c in world.sim.contracts() if c.id == contract] == ["stopped"]


def test_terminate_takes_a_last_snapshot_and_restore_brings_it_back(world: World) -> None:
    id = running(world)
    write(world, id)
    tree = look(world.workspace(id))
    ask(world, id, "terminate")
    world.until(lambda: world.show(id).state is State.TERMINATED)
    assert world.sim.contracts() == []

    ask(world, id, "restore")
    world.until(lambda: world.show(id).state is State.RUNNING)

    assert look(world.workspace(id)) == tree


def test_discard_ends_without_a_snapshot_because_the_user_said_so(world: World) -> None:
    id = running(world)
    write(world, id)

    ask(world, id, "discard")
    world.until(lambda: world.show(id).state is State.TERMINATED)

    assert world.show(id).snapshot is None


def test_a_damaged_snapshot_falls_back_to_the_one_before_and_says_what_is_missing(world: World) -> None:
    id = running(world)
    write(world, id, "first\n")
    world.until(lambda: world.show(id).snapshot is not None)
    first = world.show(id).snapshot
    (world.workspace(id) / "later.bin").write_bytes(bytes(range(256)) * 4096)
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    _damage_newest_pack(world, id)

    ask(world, id, "wake")
    world.until(lambda: world.show(id).state is State.RUNNING)

    shown = world.show(id)
    assert first
    assert shown.restored_older
    assert shown.restored_older.restored == first.id
    assert shown.restored_older.missing["added"]["listed"] == ["later.bin"]
    assert (world.workspace(id) / "notes.txt").read_text() == "first\n"


def _damage_newest_pack(world: World, id: str) -> None:
    """One flipped byte, with the same size, in a pack that only the newest snapshot has: as bit rot does."""
    where = [("instance_key", "==", f"{ACCOUNT}.{id}")]
    taken = world.store.query("snapshots", where, order_by="taken_at", newest_first=True, limit=2)
    key = manifest_key_of(world.app, world.record(id))
    newest, *older = [load_manifest(world.objects, doc.data["manifest_key"], key).packs.keys() for doc in taken]
    pack = min(newest - set().union(*older))
    key = next(stored.key for stored in world.objects.list(f"instances/{ACCOUNT}.{id}/") if stored.key.endswith(pack))
    data = bytearray(world.objects.get(key))
    data[len(data) // 2] ^= 1
    world.objects.put(key, bytes(data))


def test_a_snapshot_that_fails_is_tried_again_until_it_holds(world: World) -> None:
    id = running(world)
    write(world, id)
    machine = world.writer(id)
    stage = machine.agent.home / "engine"
    stage.write_text("in the way")
    ask(world, id, "hibernate")
    world.pass_time(60)
    assert world.show(id).state in (State.FREEZING, State.HIBERNATING)
    assert machine.writers.frozen

    stage.unlink()
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=400)

    assert world.show(id).snapshot


def test_a_hibernation_whose_snapshot_never_holds_is_called_off_and_the_user_can_work(world: World, admin: Api) -> None:
    id = running(world)
    machine = world.writer(id)
    (machine.agent.home / "engine").write_text("in the way")

    operation = admin.post(f"/instances/{id}/hibernate").json["operation"]
    world.until(lambda: not machine.writers.frozen and world.record(id).failure is not None, within_s=1500)

    shown = world.show(id)
    assert shown.state is State.RUNNING
    assert shown.failure
    assert shown.failure.code == "snapshot_failed"
    assert admin.get(f"/operations/{operation['id']}").json["status"] == "failed"
    assert world.sim.contract_of(machine.agent.label)


def test_an_agent_killed_during_a_snapshot_leaves_the_machine_and_the_old_snapshot(world: World) -> None:
    id = running(world)
    write(world, id)
    world.until(lambda: world.show(id).snapshot is not None)
    before, machine = world.show(id).snapshot, world.writer(id)
    ask(world, id, "hibernate")
    world.until(lambda: machine.agent.work is not None)
    assert machine.agent.work
    machine.agent.work.kill()
    world.machines[machine.agent.label].cut = True

    world.pass_time(150)

    assert world.sim.contract_of(machine.agent.label) is not None
    assert world.show(id).snapshot == before
