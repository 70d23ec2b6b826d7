"""The warm pool on a hand-cranked clock: filled, assigned in one commit, aged, emptied, and never over its budget."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.adapters.s3 import S3
from common.cli import fleet
from common.domain.account import Role
from common.domain.instance import State
from common.domain.ledger import LedgerEntry
from common.domain.offer import Offer, Wanted
from common.domain.pool import PoolTerms
from common.domain.reliability import Outcome
from common.domain.rental import POOL, Label, RentalState
from common.domain.strategy import Strategy
from common.errors import Stale
from common.records import load, unsettled_rentals
from common.views import pool as view
from common.workflows import offers, settle, warm_pool
from common.workflows.history import End, retire
from infra.demo.s3_server import S3Server
from jobs import refill_warm_pool
from tests.functions.conftest import Api, key_for
from tests.functions.test_cli import signed_in
from tests.functions.test_story_by_hand import ask, rentals, running, write
from tests.hand_cranked import ACCOUNT, World
from tests.snapshots_fixtures import objects, s3_on_loopback

__all__ = ["objects", "s3_on_loopback", "signed_in"]
TERMS = PoolTerms(size=2, gpu="H100 SXM", budget_usd_per_hour=Decimal(6))


@pytest.fixture
def world(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects, pool=TERMS)
    yield made
    made.close()


def ready(world: World) -> int:
    return view.show(world.app, world.now).ready


def filled(world: World) -> World:
    world.until(lambda: ready(world) == 2)
    return world


def terms(world: World, **changes: object) -> None:
    settings = world.app.settings.model_copy(update={"pool": TERMS.model_copy(update=changes)})
    world.app = dataclasses.replace(world.app, settings=settings)


def test_the_pool_is_filled_with_attested_machines_under_labels_of_its_own(world: World) -> None:
    filled(world)

    deployment = world.app.deployment()
    for machine in view.show(world.app, world.now).machines:
        label = Label.parse(machine.label, deployment=deployment.id, key=deployment.key)
        assert label
        assert label.owner == POOL
    world.pass_time(600, step_s=5)
    assert len(world.sim.contracts()) == 2


def test_a_serverless_instance_gets_a_ready_machine_at_once_and_the_pool_is_filled_again(world: World) -> None:
    filled(world)
    id = world.provision(strategy="serverless", ssh_public_key="ssh-ed25519 AAAA me")
    label = world.record(id).writer
    assert label
    assert "-pool-" in label

    took_s = world.until(lambda: world.show(id).state is State.RUNNING)

    assert took_s < 15
    (rental,) = rentals(world, id)
    assert (rental.account, rental.instance_id, rental.label) == (ACCOUNT, id, label)
    assert world.machines[label].keys == ["ssh-ed25519 AAAA me"]
    filled(world)


def test_a_serverless_instance_wakes_from_the_pool_with_its_workspace(world: World) -> None:
    id = running(filled(world), strategy="serverless")
    write(world, id, "kept\n")
    world.writer(id).set_gpu(0)
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    filled(world)

    ask(world, id, "wake")
    took_s = world.until(lambda: world.show(id).state is State.RUNNING)

    assert took_s < 15
    assert (world.workspace(id) / "notes.txt").read_text() == "kept\n"


def test_without_a_fitting_machine_serverless_starts_as_a_cold_start(world: World) -> None:
    filled(world)

    id = running(world, strategy="serverless", disk_gb=100)

    (rental,) = rentals(world, id)
    assert f"-{id}-" in rental.label


@pytest.mark.parametrize("strategy", ["coldstart", "race"])
def test_other_strategies_leave_the_pool_alone(world: World, strategy: str) -> None:
    filled(world)

    running(world, strategy=strategy)

    assert ready(world) == 2


def test_two_instances_that_want_the_last_machine_do_not_share_it(world: World) -> None:
    filled(world)
    terms(world, size=1)
    world.until(lambda: ready(world) == 1)
    first, second = world.provision(), world.provision()
    before = {id: load(world.app, f"{ACCOUNT}.{id}") for id in (first, second)}
    wishes = {}
    for id, loaded in before.items():
        spec = loaded.instance.value.spec.model_copy(update={"strategy": Strategy.SERVERLESS})
        wished = dataclasses.replace(loaded.instance, value=loaded.instance.value.having(spec=spec))
        wishes[id] = dataclasses.replace(loaded, instance=wished)
    (free,) = [kept for kept in warm_pool.members(world.app) if kept.value.state is RentalState.READY]

    assert warm_pool.assign(world.app, wishes[first], world.now)
    # the second step read the machine as free before the first one's commit
    stale = free.becomes(free.value.assigned(account="x", instance_id="i", instance_key="x.i", at=world.now))
    with pytest.raises(Stale):
        world.store.commit([wishes[second].instance.becomes(wishes[second].instance.value), stale])

    assert not warm_pool.assign(world.app, wishes[second], world.now)
    assert world.record(first).writer == free.value.label
    assert world.record(second).writer is None


def test_a_late_pass_over_the_pool_does_not_let_an_assigned_machine_go(world: World) -> None:
    filled(world)
    stale = [kept for kept in warm_pool.members(world.app) if kept.value.state is RentalState.READY]
    id = world.provision(strategy="serverless")
    taken = next(kept for kept in stale if kept.value.label == world.record(id).writer)

    with pytest.raises(Stale):
        world.store.commit(retire(world.app, [End(taken, Outcome.SERVED, "old")], world.now))

    world.until(lambda: world.show(id).state is State.RUNNING)


def test_two_refills_at_once_do_not_both_fill_it(world: World) -> None:
    class Twice:
        """A market during whose search a second refill runs to its end: between the first one's count and commit."""

        ran = False

        def __getattr__(self, name: str) -> object:
            return getattr(world.market, name)

        def search(self, wanted: Wanted) -> list[Offer]:
            found = world.market.search(wanted)
            if not self.ran:
                self.ran = True
                refill_warm_pool.run(world.app)
            return found

    refill_warm_pool.run(dataclasses.replace(world.app, markets={"vast": Twice()}))

    live = [kept for kept in warm_pool.members(world.app) if kept.value.is_live]
    assert len(live) == 2
    assert len({kept.value.label for kept in live}) == 2


@pytest.mark.parametrize("fault", ["lose", "outbid", "cut"])
def test_a_machine_of_the_pool_that_is_lost_is_retired_noted_and_replaced(world: World, fault: str) -> None:
    filled(world)
    lost = view.show(world.app, world.now).machines[0]
    contract = world.sim.contract_of(lost.label)
    assert contract
    if fault == "cut":
        world.machines[lost.label].cut = True
    else:
        getattr(world.sim, fault)(contract, world.now)
        world._carry_out()

    world.until(lambda: ready(world) < 2, within_s=900)
    filled(world)

    assert lost.label not in [m.label for m in view.show(world.app, world.now).machines if m.state is RentalState.READY]
    assert world.store.get("machines", f"vast.{lost.machine_id}")
    world.until(lambda: world.sim.contract_of(lost.label) is None)


def test_a_machine_that_waited_too_long_is_replaced(world: World) -> None:
    filled(world)
    terms(world, max_age_s=900.0)
    first = {machine.label for machine in view.show(world.app, world.now).machines}

    world.until(lambda: ready(world) < 2, within_s=1200)
    world.until(lambda: all(world.sim.contract_of(label) is None for label in first), within_s=600)
    filled(world)


def test_a_liar_never_becomes_ready(world: World) -> None:
    best = offers.for_user(world.app, TERMS.spec(), world.now)[0]
    world.sim.tamper(best.offer.machine_id, wrong_gpu="T4")

    filled(world)

    machines = view.show(world.app, world.now).machines
    assert best.offer.machine_id not in [m.machine_id for m in machines if m.state is RentalState.READY]


def test_a_smaller_budget_empties_it_and_size_nought_lets_all_go(world: World) -> None:
    filled(world)
    dearest = max(machine.usd_per_hour for machine in view.show(world.app, world.now).machines)
    terms(world, budget_usd_per_hour=dearest)
    world.until(lambda: ready(world) == 1)

    terms(world, size=0)
    world.until(lambda: world.sim.contracts() == [], within_s=600)

    assert view.show(world.app, world.now).usd_per_hour == 0


def test_the_pool_pays_until_the_assignment_and_the_owner_from_then_on(world: World) -> None:
    filled(world)
    terms(world, size=0)  # nothing is refilled; what is ready is taken before the next pass
    world.pass_time(50)
    id = world.provision(strategy="serverless")
    assert world.record(id).writer
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.pass_time(100)
    ask(world, id, "discard")
    world.until(lambda: world.show(id).state is State.TERMINATED)
    world.pass_time(400, step_s=5)
    settle.run(world.app, unsettled_rentals(world.app).values(), world.now)

    (rental,) = rentals(world, id)
    assert rental.assigned_at
    contract = next(c.id for c in world.sim.all_contracts() if c.label == rental.label)
    bill = sum(world.sim.billed(contract, world.now).values())
    entries = [entry for entry in ledger(world) if entry.label == rental.label]
    of_pool = sum(Decimal(entry.micro_usd) for entry in entries if entry.account == POOL) / 10**6
    cost = world.show(id).cost
    assert of_pool > 0
    assert of_pool + cost.ledger_usd == bill
    assert abs(cost.metered_usd - cost.ledger_usd) < rental.usd_per_second("gpu") * 2


def ledger(world: World) -> list[LedgerEntry]:
    with sqlite3.connect(world.folder / "store.db") as db:
        ids = [row[0] for row in db.execute("SELECT id FROM docs WHERE collection = 'ledger'")]
    docs = [world.store.get("ledger", id) for id in ids]
    return [LedgerEntry.model_validate(doc.data) for doc in docs if doc]


def test_the_pool_is_shown_by_the_api_and_the_command_line(signed_in: World) -> None:
    filled(signed_in)
    viewer = Api(signed_in, key_for(signed_in, "acme", Role.VIEWER))

    shown = viewer.get("/pool").json
    printed = CliRunner().invoke(fleet.pool, ["show"])
    as_json = CliRunner().invoke(fleet.pool, ["show", "--json"])

    assert (shown["ready"], shown["terms"]["size"]) == (2, 2)
    assert Decimal(shown["usd_per_hour"]) <= 6
    assert "2 ready of 2 x H100 SXM" in printed.stdout
    assert json.loads(as_json.stdout)["ready"] == 2
