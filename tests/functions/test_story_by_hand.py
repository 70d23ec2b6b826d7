"""The same story on a hand-cranked clock with the production defaults."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from common.domain.host import Boot
from common.domain.instance import State
from common.domain.rental import Rental, RentalState
from common.errors import NotFound
from common.ports import Charge
from common.records import dump, load, manifest_key_of, restless_rentals, unsettled_rentals
from common.snapshots.engine import load_manifest
from common.workflows import hibernate, hosts, lifecycle, restore, settle, sweep, terminate
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


def test_the_ledger_is_the_bill_and_the_meter_agrees_within_a_second(world: World) -> None:
    id = running(world)
    write(world, id)
    world.pass_time(300)
    ask(world, id, "terminate")
    world.until(lambda: world.show(id).state is State.TERMINATED)
    world.pass_time(300, step_s=5)
    settle.run(world.app, unsettled_rentals(world.app).values(), world.now)

    (rental,) = rentals(world, id)
    contract = next(c.id for c in world.sim.all_contracts() if c.label == rental.label)
    bill = world.sim.billed(contract, world.now)
    cost = world.show(id).cost
    assert rental.settled
    assert cost.ledger_usd == sum(bill.values())
    for kind, usd in rental.metered_usd(world.now).items():
        assert abs(usd - bill.get(kind, Decimal(0))) <= rental.usd_per_second(kind) + Decimal("0.000001")


def test_what_lost_a_race_is_metered_too_when_its_first_word_comes_after_it_was_destroyed(world: World) -> None:
    id, started_at = running_unheard(world)
    world.pass_time(10)
    ask(world, id, "terminate")
    world.until(lambda: not world.sim.contracts())

    (start,) = world.waiting
    word = Boot(label=start.label, boot_id="0123456789abcdef", up_for_s=(world.now - started_at).total_seconds())
    with pytest.raises(NotFound):
        hosts.boot(world.app, word, start.env["DUMONT_BOOTSTRAP"], world.now)

    (rental,) = rentals(world, id)
    assert abs(metered_gpu(world, id) - billed_gpu(world, start.label)) <= rental.usd_per_second("gpu")


def test_a_machine_that_never_spoke_is_metered_from_the_first_listing_that_shows_it_running(world: World) -> None:
    id, _ = running_unheard(world)
    world.pass_time(3 * world.timing.reconcile_every_s)
    ask(world, id, "terminate")
    world.until(lambda: not world.sim.contracts())

    (rental,) = rentals(world, id)
    unseen = billed_gpu(world, rental.label) - metered_gpu(world, id)
    assert 0 <= unseen <= rental.usd_per_second("gpu") * (int(world.timing.reconcile_every_s) + 1)


def test_a_machine_that_is_not_wanted_any_more_is_metered_while_its_destroy_is_not_heard(world: World) -> None:
    id, _ = running_unheard(world)
    world.destroys_are_lost = True
    ask(world, id, "terminate")
    world.pass_time(900, step_s=5)
    assert len(world.sim.contracts()) == 1
    assert rentals(world, id)[0].state is RentalState.RELEASING
    world.destroys_are_lost = False
    world.until(lambda: not world.sim.contracts(), step_s=5)

    (rental,) = rentals(world, id)
    unseen = billed_gpu(world, rental.label) - metered_gpu(world, id)
    assert 0 <= unseen <= rental.usd_per_second("gpu") * (int(world.timing.reconcile_every_s) + 6)


@pytest.mark.parametrize("exits", [False, True])
def test_a_listing_of_a_machine_that_is_not_wanted_begins_its_meter_with_its_destroy(world: World, exits: bool) -> None:
    world.creates_are_not_answered = world.destroys_are_lost = True
    id, _ = running_unheard(world)
    ask(world, id, "terminate")
    if exits:  # its contract runs, and bills, on
        world.sim.exited(world.sim.contracts()[0].id, world.now)
    world.pass_time(900, step_s=5)
    assert len(world.sim.contracts()) == 1
    world.destroys_are_lost = False
    world.until(lambda: not world.sim.contracts(), step_s=5)

    (rental,) = rentals(world, id)
    unseen = billed_gpu(world, rental.label) - metered_gpu(world, id)
    assert 0 <= unseen <= rental.usd_per_second("gpu") * (int(world.timing.reconcile_every_s) + 6)


def test_that_a_machine_runs_is_noted_although_its_record_was_moved_while_the_market_listed(world: World) -> None:
    world.destroys_are_lost = True
    id, _ = running_unheard(world)
    before = restless_rentals(world.app)
    ask(world, id, "terminate")
    assert rentals(world, id)[0].meter.gpu_from is None

    sweep.run(world.app, world.now, before=before)

    (rental,) = rentals(world, id)
    assert (rental.state, rental.meter.gpu_from) == (RentalState.RELEASING, world.now)


def running_unheard(world: World) -> tuple[str, datetime]:
    """Its id, and since when the market bills its GPU; its start-up script has not run yet."""
    world.starts_wait = True
    id = world.provision()
    world.until(lambda: bool(world.waiting), step_s=0.25)
    return id, world.now


def metered_gpu(world: World, id: str) -> Decimal:
    return sum((rental.metered_usd(world.now)["gpu"] for rental in rentals(world, id)), Decimal(0))


def billed_gpu(world: World, label: str) -> Decimal:
    contract = next(c.id for c in world.sim.all_contracts() if c.label == label)
    return world.sim.billed(contract, world.now)["gpu"]


class Moving:
    """A market whose bill of a machine grows with every look, as that of one which outlived its destroy does."""

    def __init__(self, market: Any) -> None:
        self._market, self.moves, self._looks = market, True, 0

    def charges(self, since: datetime, until: datetime) -> list[Charge]:
        self._looks += self.moves
        first, *others = self._market.charges(since, until)
        return [replace(first, amount_usd=str(Decimal(first.amount_usd) + self._looks)), *others]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._market, name)


def test_a_bill_that_still_moves_is_not_closed(world: World) -> None:
    id = running(world)
    ask(world, id, "discard")
    world.until(lambda: all(rental.state is RentalState.RELEASED for rental in rentals(world, id)))
    market = Moving(world.app.markets["vast"])
    app = replace(world.app, markets={"vast": market})

    def settled() -> int:
        world.now += timedelta(minutes=30)
        return settle.run(app, unsettled_rentals(app).values(), world.now)

    assert [settled() for _ in range(3)] == [0, 0, 0]
    market.moves = False
    assert settled() == 1
    (rental,) = rentals(world, id)
    entries = world.store.query("ledger", [("instance_key", "==", f"{ACCOUNT}.{id}")])
    assert rental.settled
    assert sum(doc.data["micro_usd"] for doc in entries) > 3_000_000


class Rowless:
    """A market whose bill has no row yet."""

    def __init__(self, market: Any) -> None:
        self._market = market

    def charges(self, since: datetime, until: datetime) -> list[Charge]:
        assert self._market.charges(since, until)
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._market, name)


def test_a_bill_without_a_machine_that_ran_is_waited_for_longer(world: World) -> None:
    """Rows come late; one that settled without them would be in no ledger for ever."""
    id = running(world)
    world.pass_time(120)
    ask(world, id, "discard")
    world.until(lambda: all(rental.state is RentalState.RELEASED for rental in rentals(world, id)))
    rowless = replace(world.app, markets={"vast": Rowless(world.app.markets["vast"])})
    waits_s = world.timing.settle_after_s + world.timing.reconcile_every_s

    world.now += timedelta(seconds=waits_s + 1)
    assert settle.run(rowless, unsettled_rentals(world.app).values(), world.now) == 0
    world.now += timedelta(seconds=settle.UNBILLED_TIMES * waits_s)
    assert settle.run(rowless, unsettled_rentals(world.app).values(), world.now) == 1
    assert world.store.query("ledger", [("instance_key", "==", f"{ACCOUNT}.{id}")]) == []


def test_a_settled_machine_is_metered_no_more_though_the_note_of_its_end_was_lost(world: World) -> None:
    id = running(world)
    ask(world, id, "discard")
    world.until(lambda: all(rental.state is RentalState.RELEASED for rental in rentals(world, id)))
    (kept,) = load(world.app, f"{ACCOUNT}.{id}").rentals.values()
    called_at = kept.value.destroy_called_at
    assert called_at
    meter = kept.value.meter.model_copy(update={"gpu_until": None, "disk_until": None})
    world.store.cas(kept.doc, dump(kept.value.model_copy(update={"meter": meter})))
    world.pass_time(900)

    (rental,) = rentals(world, id)
    assert rental.settled
    assert rental.meter.gpu_until == rental.meter.disk_until == max(rental.at, called_at)
