"""Slow, broken and unreliable machines, on a hand-cranked clock with the production defaults."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from common.cli import fleet
from common.domain.host import Attest
from common.domain.instance import State, Want
from common.domain.ranking import Ranked
from common.domain.reliability import MachineRecord, Outcome
from common.domain.rental import RentalState
from common.domain.spec import Spec
from common.errors import NoOffer, Stale
from common.records import Kept, dump, load
from common.workflows import offers, terminate
from tests.functions.conftest import Api
from tests.functions.test_cli import signed_in
from tests.functions.test_story_by_hand import ask, rentals, running, write
from tests.hand_cranked import ACCOUNT, World

__all__ = ["signed_in"]
SLOW_S = 2400
run = CliRunner()


def best_machine(world: World) -> str:
    """The machine that a cold start would rent first."""
    return ranked(world)[0].offer.machine_id


def ranked(world: World) -> list[Ranked]:
    return offers.for_user(world.app, Spec(gpu="H100 SXM"), world.now)


def machine(world: World, machine_id: str) -> MachineRecord | None:
    doc = world.store.get("machines", f"vast.{machine_id}")
    return MachineRecord.model_validate(doc.data) if doc else None


# --- boot


def test_a_slow_machine_is_hedged_once_and_the_slow_one_released_when_the_second_is_ready(world: World) -> None:
    slow = best_machine(world)
    world.sim.tamper(slow, boot_s=SLOW_S)

    id = world.provision()
    took_s = world.until(lambda: world.show(id).state is State.RUNNING)

    made = rentals(world, id)
    assert len(made) == 2
    assert 180 < took_s < 400
    (lost,) = [r for r in made if r.offer.machine_id == slow]
    assert lost.state in (RentalState.RELEASING, RentalState.RELEASED)
    assert lost.message == "lost the race"
    assert machine(world, slow) is None


def test_a_machine_whose_runtime_is_broken_is_given_up_at_once_and_noted(world: World) -> None:
    broken = best_machine(world)
    world.sim.tamper(broken, boot_s=SLOW_S, boot_message="Error: OCI runtime create failed: exec format error")

    id = world.provision()
    took_s = world.until(lambda: world.show(id).state is State.RUNNING)

    assert took_s < 180
    record = machine(world, broken)
    assert record
    assert record.outcomes == {"boot_failed": 1}
    assert not record.is_blocked(world.now)


def test_an_image_that_nobody_can_pull_is_not_blamed_on_the_machine(world: World) -> None:
    first = best_machine(world)
    world.sim.tamper(first, boot_s=SLOW_S, boot_message="Error response from daemon: pull access denied for acme/x")

    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)

    assert machine(world, first) is None


def test_a_machine_that_still_pulls_is_not_given_up_at_the_usual_deadline(world: World) -> None:
    for one in ranked(world):
        world.sim.tamper(one.offer.machine_id, boot_s=900, boot_message="latest: Pulling from acme/large")

    id = world.provision()
    took_s = world.until(lambda: world.show(id).state is State.RUNNING)

    assert took_s > 850
    assert len(rentals(world, id)) == 2


def test_a_round_robin_goes_to_another_country_after_a_failure(world: World) -> None:
    id = world.provision(strategy="roundrobin")
    (first,) = rentals(world, id)
    contract = world.sim.contract_of(first.label)
    assert contract
    world.sim.lose(contract, world.now)

    world.until(lambda: world.show(id).state is State.RUNNING)

    writer = next(r for r in rentals(world, id) if r.label == world.record(id).writer)
    assert writer.offer.country != first.offer.country


# --- history


def test_a_machine_that_served_and_one_that_was_taken_away_are_noted_once_each(world: World) -> None:
    id = running(world)
    write(world, id)
    world.until(lambda: world.show(id).snapshot is not None)
    (first,) = rentals(world, id)
    contract = world.sim.contract_of(first.label)
    assert contract
    world.sim.outbid(contract, world.now)
    world._carry_out()
    world.until(lambda: world.record(id).writer not in (first.label, None))
    world.until(lambda: world.show(id).state is State.RUNNING)
    second = next(r for r in rentals(world, id) if r.label == world.record(id).writer)
    ask(world, id, "terminate")
    world.until(lambda: world.show(id).state is State.TERMINATED)

    taken, served = machine(world, first.offer.machine_id), machine(world, second.offer.machine_id)
    assert taken
    assert served
    assert taken.outcomes == {"interrupted": 1}
    assert served.outcomes == {"served": 1}


def test_a_blocked_machine_is_not_rented_and_is_shown_as_such(world: World, admin: Api) -> None:
    bad = best_machine(world)
    block(world, bad)

    plan = admin.post("/instances/plan", {"gpu": "H100 SXM"}).json
    id = running(world)

    assert plan["offers"][0]["machine_id"] != bad
    assert plan["offers"][-1]["machine_id"] == bad
    assert plan["offers"][-1]["blocked_until"]
    assert rentals(world, id)[0].offer.machine_id != bad


def test_when_every_machine_is_blocked_the_sentence_says_so(world: World, admin: Api) -> None:
    for one in ranked(world):
        block(world, one.offer.machine_id)

    answer = admin.post("/instances/provision", {"gpu": "H100 SXM"})

    assert (answer.status_code, answer.json["code"]) == (409, NoOffer.code)
    assert "blocked by their history" in answer.json["detail"]


def block(world: World, machine_id: str) -> None:
    record = MachineRecord(provider="vast", machine_id=machine_id, at=world.now)
    for _ in range(5):
        record = record.noting(Outcome.LOST, gpu="H100 SXM", at=world.now)
    world.store.create("machines", f"vast.{machine_id}", dump(record))


def test_the_history_is_listed_by_pages_by_provider_and_by_block(world: World, admin: Api) -> None:
    for machine_id in ("1", "2", "3"):
        block(world, machine_id)
    fresh = MachineRecord(provider="tensordock", machine_id="t1", at=world.now)
    world.store.create("machines", "tensordock.t1", dump(fresh.noting(Outcome.SERVED, gpu="x", at=world.now)))

    first = admin.get("/machines/history?limit=2").json
    rest = admin.get(f"/machines/history?limit=2&cursor={first['next_cursor']}").json
    blocked = admin.get("/machines/history?blocked=true&provider=vast").json["items"]

    assert [item["machine_id"] for item in first["items"] + rest["items"]] == ["t1", "1", "2", "3"]
    assert rest["next_cursor"] is None
    assert {item["machine_id"] for item in blocked} == {"1", "2", "3"}
    assert all(item["blocked"] and item["success_rate_bound"] < 0.3 for item in blocked)
    assert [item["machine_id"] for item in admin.get("/machines/history?blocked=false").json["items"]] == ["t1"]
    assert admin.get("/machines/history?provider=nobody").json["items"] == []
    assert admin.get("/machines/history?limit=0").status_code == 422


def test_machines_history_is_a_verb_of_its_own_beside_the_alias(signed_in: World) -> None:
    block(signed_in, "7")

    history = run.invoke(fleet.machines, ["history", "--json"])
    listed = run.invoke(fleet.machines, ["list", "--json"])

    assert json.loads(history.stdout)["items"][0]["machine_id"] == "7"
    assert json.loads(listed.stdout) == {"items": [], "next_cursor": None}


def test_a_step_replayed_after_the_machine_was_let_go_counts_it_once(world: World) -> None:
    id = running(world)
    before = load(world.app, f"{ACCOUNT}.{id}")
    ask(world, id, "discard")
    world.until(lambda: world.show(id).state is State.TERMINATED)
    (rental,) = rentals(world, id)
    wished = Kept(before.instance.doc, before.instance.value.having(want=Want.GONE, discard=True))
    with pytest.raises(Stale):
        terminate.discard(world.app, dataclasses.replace(before, instance=wished), world.now)

    record = machine(world, rental.offer.machine_id)
    assert record
    assert record.outcomes == {"served": 1}


# --- attestation


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"wrong_gpu": "GeForce RTX 3060"}, "has NVIDIA GeForce RTX 3060"),
        ({"small_disk": 10}, "bytes of disk"),
        ({"slow_net": 2.0}, "Mb/s"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("strategy", ["coldstart", "race"])
def test_a_liar_is_let_go_noted_and_replaced_by_an_honest_machine(
    world: World, lie: dict, words: str, strategy: str
) -> None:
    liar = best_machine(world)
    world.sim.tamper(liar, **lie)

    id = running(world, strategy=strategy)

    (lied,) = [r for r in rentals(world, id) if r.offer.machine_id == liar]
    assert lied.state in (RentalState.RELEASING, RentalState.RELEASED)
    assert words in lied.message
    writer = next(r for r in rentals(world, id) if r.label == world.record(id).writer)
    assert writer.offer.machine_id != liar
    record = machine(world, liar)
    assert record
    assert record.outcomes == {"lied": 1}
    world.until(lambda: world.sim.contract_of(lied.label) is None)


def test_a_machine_that_can_measure_nothing_is_taken_and_the_story_says_so(world: World, admin: Api) -> None:
    world.measure = lambda *_: Attest()
    id = running(world)

    (won,) = [e for e in admin.get(f"/instances/{id}/events").json["items"] if e["kind"] == "won"]
    assert "not measured: gpu" in won["text"]


def test_a_host_that_is_up_but_still_measures_is_not_ready(world: World) -> None:
    honest, world.measure = world.measure, lambda *_: None
    id = world.provision()
    world.until(lambda: bool(world.machines))
    world.pass_time(30)
    assert world.show(id).state is State.PROVISIONING

    world.measure = honest
    world.until(lambda: world.show(id).state is State.RUNNING, within_s=5)


def test_a_host_that_never_measures_is_taken_as_unknown_after_a_minute(world: World) -> None:
    world.measure = lambda *_: None
    id = world.provision()
    world.until(lambda: bool(world.machines))

    took_s = world.until(lambda: world.show(id).state is State.RUNNING)

    assert 55 < took_s < 150
