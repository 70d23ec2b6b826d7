"""Hosts that say nothing new: what they cost, and that nobody who lives is taken for silent, whatever is lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from common.domain.host import HostRecord
from common.domain.instance import Phase, State
from common.domain.liveness import Heard
from common.domain.rental import RentalState
from common.errors import StoreUnavailable
from common.records import heard_of, load, overlaid
from common.workflows import failover, hosts, lifecycle
from jobs import reconcile
from tests.hand_cranked import ACCOUNT, World

NO_SNAPSHOT = {"snapshot_every_s": 86_400}


class Counting:
    """A store that counts calls, and fails those writes that it is told to fail."""

    def __init__(self, store: Any) -> None:
        self._store, self.counts, self.fails = store, Counter[str](), set[str]()

    def get(self, collection: str, id: str) -> Any:
        self.counts[f"read {collection}"] += 1
        return self._store.get(collection, id)

    def put(self, collection: str, id: str, data: Any) -> None:
        self._written(collection)
        self._store.put(collection, id, data)

    def create(self, collection: str, id: str, data: Any) -> Any:
        self._written(collection)
        return self._store.create(collection, id, data)

    def cas(self, doc: Any, data: Any) -> Any:
        self._written(doc.collection)
        return self._store.cas(doc, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _written(self, collection: str) -> None:
        if collection in self.fails:
            raise StoreUnavailable("no answer")
        self.counts[f"write {collection}"] += 1


@pytest.fixture
def store(world: World) -> Counting:
    counting = Counting(world.store)
    world.app = dataclasses.replace(world.app, store=counting)
    return counting


def settled(world: World) -> str:
    """An instance that serves, and whose host has said so twice."""
    id = world.provision(**NO_SNAPSHOT)
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.pass_time(130)
    return id


def looked_at_all(world: World) -> datetime:
    doc = world.store.get("runs", reconcile.LOOKS)
    assert doc
    return reconcile.Looks.model_validate(doc.data).rentals_at or world.now


def view(world: World, id: str) -> HostRecord:
    found = load(world.app, f"{ACCOUNT}.{id}")
    host = overlaid(found.writer_host, heard_of(world.app, world.now))
    assert host
    return host


def new_process(world: World, *, has_just_written: bool) -> None:
    """The process that heard the hosts is gone with its memory; another one takes their calls."""
    heard = Heard(f"process-{world.now:%H%M%S}", world.timing.silent_after_s, company_min=0)
    if has_just_written:
        heard.begin_flush(world.now)
    world.app = dataclasses.replace(world.app, heard=heard)


def test_a_host_that_says_nothing_new_costs_one_read_and_no_document_of_its_own(world: World, store: Counting) -> None:
    settled(world)
    beats = Counter[str]()
    (machine,) = world.machines.values()
    told, before = machine.agent.control.beat, store.counts.copy()

    def counted(heartbeat: Any, token: str) -> Any:
        reads = store.counts["read instances"], store.counts["read rentals"], store.counts["read hosts"]
        reply = told(heartbeat, token)
        after = store.counts["read instances"], store.counts["read rentals"], store.counts["read hosts"]
        beats[str([b - a for a, b in zip(reads, after, strict=True)])] += 1
        return reply

    machine.agent.control.beat = counted  # type: ignore[method-assign]
    world.pass_time(600)

    assert beats == {"[1, 0, 0]": 10}
    assert (store.counts - before)["write hosts"] == 0


def test_the_view_of_a_living_host_is_never_older_than_a_report_and_a_flush(world: World) -> None:
    id = settled(world)
    ages = []
    for _ in range(600):
        world.pass_time(1)
        ages.append(view(world, id).silent_for_s(world.now))

    assert max(ages) <= world.timing.heartbeat_settled_s + 1


def test_one_process_that_dies_with_its_memory_makes_nobody_silent(world: World) -> None:
    id = settled(world)
    new_process(world, has_just_written=True)
    world.pass_time(59)
    new_process(world, has_just_written=False)
    ages = []
    for _ in range(300):
        world.pass_time(1)
        ages.append(view(world, id).silent_for_s(world.now))

    assert max(ages) <= 140


def test_when_every_memory_is_lost_the_hosts_own_document_is_written_in_time(world: World, store: Counting) -> None:
    """Every report goes to another process, which dies before it writes."""
    id = settled(world)
    epoch = world.record(id).epoch
    ages = []
    for _ in range(40):
        for _ in range(30):
            world.pass_time(1)
            ages.append(view(world, id).silent_for_s(world.now))
        new_process(world, has_just_written=True)

    assert max(ages) <= world.timing.silent_after_s
    assert world.record(id).epoch == epoch
    assert store.counts["write hosts"] > 0


def test_a_store_that_takes_no_flush_loses_no_report_and_no_host(world: World, store: Counting) -> None:
    id = settled(world)
    epoch, store.fails = world.record(id).epoch, {"seen"}
    world.pass_time(900)

    assert world.record(id).epoch == epoch
    assert [fields["error"] for event, fields in world.log if event == "flush_failed"]
    store.fails = set()
    world.pass_time(61)
    assert view(world, id).silent_for_s(world.now) <= 61


def test_a_host_that_falls_silent_is_replaced_although_a_process_still_remembers_it(world: World) -> None:
    id = settled(world)
    silent = world.record(id).writer
    world.writer(id).cut = True
    cut_at = world.now
    world.until(lambda: world.record(id).writer not in (silent, None), within_s=900)

    noticed_at = load(world.app, f"{ACCOUNT}.{id}").rentals[silent or ""].value.at
    assert silent in heard_of(world.app, noticed_at)
    assert 120 <= (noticed_at - cut_at).total_seconds() <= 241
    assert load(world.app, f"{ACCOUNT}.{id}").rentals[silent or ""].value.state is RentalState.HELD


def test_who_is_heard_while_it_is_being_fenced_is_not_fenced(world: World) -> None:
    """The fencing commit rests on the host's document, which the first report after a silence writes."""
    id = settled(world)
    key, machine = f"{ACCOUNT}.{id}", world.writer(id)
    machine.cut = True
    world.now += timedelta(seconds=200)
    found = load(world.app, key)
    assert found.writer
    silent = found.writer.value.model_copy(update={"unreachable_at": world.now})
    world.store.cas(found.writer.doc, {**found.writer.doc.data, "unreachable_at": world.now})
    assert silent.unreachable_at
    seen_before = load(world.app, key)
    machine.cut = False
    assert machine.agent.step(world.now)
    with pytest.raises(Exception, match="was written since"):
        failover.fence_silent(world.app, seen_before, world.now)
    lifecycle.advance(world.app, key)

    assert world.record(id).phase is Phase.UP
    assert world.record(id).writer == found.writer.value.label


def test_a_silence_that_is_over_fences_nobody_however_late_the_lifecycle_looks(world: World) -> None:
    """The rental still says unreachable, the host's own document is old, and a process has heard it since."""
    id = settled(world)
    key = f"{ACCOUNT}.{id}"
    world.pass_time(400)
    writer = load(world.app, key).writer
    assert writer
    world.store.cas(writer.doc, {**writer.doc.data, "unreachable_at": world.now, "restless": True})
    lifecycle.advance(world.app, key)
    assert world.record(id).writer == writer.value.label

    reconcile.run(world.app)
    again = load(world.app, key).writer
    assert again
    assert again.value.unreachable_at is None


def test_news_that_nobody_heeded_is_news_again_until_somebody_does(world: World) -> None:
    """The hint is lost, as when its process is killed: the host's next report is the retry."""
    id = settled(world)
    agent = world.writer(id).agent
    news = agent._heartbeat(world.now).model_copy(update={"vetoes": ["ssh"]})
    reply, first = hosts.receive(world.app, news, agent.memory.token, world.now)
    again = agent._heartbeat(world.now).model_copy(update={"vetoes": ["ssh"]})
    _, second = hosts.receive(world.app, again, reply.token, world.now)
    assert first
    assert second

    at_rest = lifecycle.hint(world.app, second.rental.instance_key, second.instance)
    reply = hosts.answer(world.app, second, at_rest, world.now)
    last = agent._heartbeat(world.now).model_copy(update={"vetoes": ["ssh"]})
    _, third = hosts.receive(world.app, last, reply.token, world.now)
    assert third is None


def test_a_report_out_of_order_is_compared_with_what_is_recorded(world: World) -> None:
    """Its answer was lost, and what it said then is recorded: the old token does not speak for that."""
    id = settled(world)
    agent = world.writer(id).agent
    news = agent._heartbeat(world.now).model_copy(update={"vetoes": ["ssh"]})
    hosts.receive(world.app, news, agent.memory.token, world.now)  # the reply is lost
    _, heard = hosts.receive(world.app, agent._heartbeat(world.now), agent.memory.token, world.now)

    assert heard
    assert heard.host.vetoes == []
    assert view(world, id).vetoes == []


def test_a_machine_that_vanishes_is_missed_although_its_rental_was_not_read(world: World) -> None:
    id = settled(world)
    lost = world.record(id).writer
    contract = world.sim.contract_of(lost or "")
    assert contract
    world.machines[lost or ""].cut = True
    world.sim.lose(contract, world.now)
    took_s = world.until(lambda: world.record(id).writer not in (lost, None), within_s=900)

    assert took_s < 420
    assert load(world.app, f"{ACCOUNT}.{id}").rentals[lost or ""].value.state in (
        RentalState.RELEASING,
        RentalState.RELEASED,
    )


def test_a_machine_that_ends_while_the_market_is_silent_is_missed_when_it_answers_again(world: World) -> None:
    """No listing shows it, its host is long forgotten: the look at all rentals that failed is made up for at once."""
    id = settled(world)
    lost = world.record(id).writer
    contract = world.sim.contract_of(lost or "")
    assert contract
    world.machines[lost or ""].cut = world.market_is_down = True
    world.sim.lose(contract, world.now)
    world.pass_time(900)
    while world.now - looked_at_all(world) > timedelta(seconds=world.timing.reconcile_every_s):
        world.pass_time(30)  # so that the next look at all would be long in coming
    world.market_is_down = False

    assert world.until(lambda: world.record(id).writer not in (lost, None), within_s=900) < 420


def test_a_look_at_all_rentals_that_does_not_come_to_its_end_is_made_again_a_minute_later(
    world: World, store: Counting
) -> None:
    """No listing shows the machine, nobody has its host in mind, and the run that would miss it fails half-way."""
    id = settled(world)
    lost = world.record(id).writer or ""
    contract = world.sim.contract_of(lost)
    assert contract
    world.machines[lost].cut = True
    world.sim.lose(contract, world.now)
    for doc in world.store.query("seen", [("at", ">=", world.now - timedelta(days=1))]):
        world.store.delete(doc)
    minute = timedelta(seconds=world.timing.reconcile_every_s)
    store.fails.add("rentals")
    failed = 0
    for _ in range(reconcile.ALL_RENTALS_RUNS + 2):
        world.now += minute
        try:
            reconcile.run(world.app)
        except StoreUnavailable:
            failed += 1
    assert failed >= 2
    store.fails.clear()
    world.now += minute
    reconcile.run(world.app)

    rental = load(world.app, f"{ACCOUNT}.{id}").rentals[lost].value
    assert rental.absent_at is not None
