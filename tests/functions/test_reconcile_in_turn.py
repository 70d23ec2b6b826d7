"""A market that hangs, or a fleet too large for one run: every run reaches its end, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from common import topology
from common.domain.instance import State
from common.domain.pool import PoolTerms
from common.domain.rental import Rental, RentalState
from common.ports import App
from common.records import load
from common.views import pool as view
from common.workflows import lifecycle, outbox, sweep, terminate
from jobs import reconcile, refill_warm_pool
from tests.functions.test_story_by_hand import rentals, running, write
from tests.hand_cranked import ACCOUNT, World

CALL_S = 30.0
"""The timeout of one call to a marketplace."""
MINUTE = timedelta(minutes=1)


class Hanging(httpx.BaseTransport):
    """A marketplace that may keep every call waiting, and the clock with it, until the caller gives up."""

    def __init__(self, world: World) -> None:
        self._inner, self._world = world.market._http._transport, world
        self.hangs, self.hangs_at, self.calls = False, "nowhere", 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        if not self.hangs and not request.url.path.startswith(self.hangs_at):
            return self._inner.handle_request(request)
        self._world.now += timedelta(seconds=CALL_S)
        raise httpx.ReadTimeout("it hangs", request=request)


class Steps:
    """In the place of `lifecycle.push`: which instances were begun, each taking its time."""

    def __init__(self, world: World, *, takes_s: float) -> None:
        self.world, self.takes_s, self.begun = world, takes_s, list[str]()
        self.also: Callable[[App, str], None] = lambda _app, _key: None

    def push(self, app: App, key: str, _instance: object = None) -> None:
        self.begun.append(key)
        self.world.now += timedelta(seconds=self.takes_s)
        self.also(app, key)

    def of_a_run(self) -> list[str]:
        self.begun = []
        self.world.now += MINUTE
        reconcile.run(self.world.app)
        return [*self.begun]


@pytest.fixture
def market(world: World) -> Hanging:
    hanging = Hanging(world)
    world.market._http._transport = hanging
    return hanging


@pytest.fixture
def steps(world: World, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Of a world in which six instances wait for something; begun so that each takes nearly half of a run's time."""
    for _ in range(6):
        world.provision()
    made = Steps(world, takes_s=30.0)
    monkeypatch.setattr(lifecycle, "push", made.push)
    return made


def looks(world: World) -> reconcile.Looks:
    doc = world.store.get("runs", reconcile.LOOKS)
    assert doc
    return reconcile.Looks.model_validate(doc.data)


def discarded(world: World, count: int) -> list[str]:
    """Instances that ran and were discarded: each has a machine to destroy."""
    ids = [running(world) for _ in range(count)]
    for id in ids:
        write(world, id)
    world.pass_time(300)
    for id in ids:
        terminate.request(world.app, load(world.app, f"{ACCOUNT}.{id}"), discard=True, now=world.now)
    return ids


def releasing(world: World, ids: list[str]) -> list[Rental]:
    return [row for id in ids for row in rentals(world, id) if row.state is RentalState.RELEASING]


def test_while_a_market_hangs_every_run_advances_everybody_and_reaches_its_end(
    world: World, market: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded(world, 4)
    begun, drained, push, drain = list[str](), list[float](), lifecycle.push, outbox.drain
    monkeypatch.setattr(lifecycle, "push", lambda app, key: [begun.append(key), push(app, key)])
    market.hangs = True
    for _ in range(3):
        world.now += MINUTE
        began_at, begun[:] = world.now, []

        def drained_after(*args: Any, began_at: Any = began_at) -> Any:
            drained.append((world.now - began_at).total_seconds())
            return drain(*args)

        monkeypatch.setattr(outbox, "drain", drained_after)
        market.calls = 0
        reconcile.run(world.app)
        assert len(set(begun)) == 4
        assert market.calls <= 5, "list, credit, two instances, and the bills at most"

    assert max(drained) <= 5 * CALL_S < topology.function("reconcile").timeout_s


def test_when_the_market_answers_again_everything_goes_on_where_it_was(world: World, market: Hanging) -> None:
    ids = discarded(world, 4)
    market.hangs = True
    for _ in range(3):
        world.now += MINUTE
        reconcile.run(world.app)
    assert len(releasing(world, ids)) == 4
    assert len(world.sim.contracts()) == 4, "nothing is believed destroyed"
    market.hangs = False
    world.next_job_at = world.now

    world.until(lambda: not world.sim.contracts() and not releasing(world, ids), within_s=400)
    assert {world.show(id).state for id in ids} == {State.TERMINATED}


def test_a_destroy_that_is_not_made_for_a_market_that_hangs_is_not_announced(world: World, market: Hanging) -> None:
    ids = discarded(world, 4)
    market.hangs = True
    world.now += MINUTE
    reconcile.run(world.app)

    called = [row.destroy_called_at is not None for row in releasing(world, ids)]
    assert sorted(called) == [False, False, True, True]


def test_a_run_whose_time_is_over_is_gone_on_with_by_the_next(steps: Steps) -> None:
    """Three instances of 30 s are begun within 75."""
    runs = [steps.of_a_run() for _ in range(4)]

    first, second = runs[:2]
    assert [len(run) for run in runs] == [3, 3, 3, 3]
    assert first + second == sorted(first + second)
    assert runs == [first, second, first, second]


def test_a_run_that_has_time_for_all_advances_all_wherever_the_last_one_stopped(world: World, steps: Steps) -> None:
    first = steps.of_a_run()
    steps.takes_s = 0.1
    everybody = steps.of_a_run()

    assert everybody[0] > first[-1]
    assert len(set(everybody)) == len(everybody) == 6
    assert looks(world).stopped_at == ""


def test_one_that_is_gone_or_new_moves_nobody_out_of_the_circle(world: World, steps: Steps) -> None:
    first = steps.of_a_run()
    doc = world.store.get("instances", first[-1])
    assert doc
    world.store.delete(doc)
    new = f"{ACCOUNT}.{world.provision()}"
    second = steps.of_a_run()

    everybody = sorted({*first[:-1], *second, new})
    behind = [key for key in everybody if key > first[-1]]
    assert second == (behind + everybody)[:3]


def test_who_made_the_run_give_a_market_up_comes_last_in_the_next(world: World, steps: Steps) -> None:
    """Those behind are advanced all the same, without that market; then they are the first to be asked for."""
    steps.takes_s = 0.1
    in_order = steps.of_a_run()

    def hangs(app: App, key: str) -> None:
        assert app.silences is not None
        app.silences["vast"] += key in in_order[:2]

    steps.also = hangs
    assert steps.of_a_run() == in_order
    assert looks(world).stopped_at == in_order[1]
    assert steps.of_a_run() == [*in_order[2:], *in_order[:2]]


def test_a_look_at_all_instances_takes_as_many_runs_as_it_needs(world: World, steps: Steps) -> None:
    steps.takes_s = 0.1
    steps.of_a_run()
    began_at = world.now + MINUTE * (reconcile.ALL_INSTANCES_RUNS + 1)
    world.now, steps.takes_s = began_at - MINUTE, 60.0
    begun = steps.of_a_run() + steps.of_a_run()

    assert looks(world).round_at == began_at
    assert looks(world).instances_at != began_at, "a look that is not at its end has looked at nothing"
    begun += steps.of_a_run()
    assert begun == sorted(set(begun))
    begun += steps.of_a_run()
    assert len(set(begun)) == 6
    assert looks(world).round_at is None
    assert looks(world).instances_at == began_at


def test_a_run_that_learns_nothing_new_of_itself_writes_no_note(world: World, steps: Steps) -> None:
    steps.takes_s = 0.1
    steps.of_a_run()
    doc = world.store.get("runs", reconcile.LOOKS)
    assert doc
    steps.of_a_run()
    again = world.store.get("runs", reconcile.LOOKS)

    assert again
    assert again.rev == doc.rev


def test_an_instance_that_breaks_stops_nobody_else_and_the_run_says_so(world: World, steps: Steps) -> None:
    steps.takes_s = 0.1
    broken = min(steps.of_a_run())

    def breaks(_app: App, key: str) -> None:
        if key == broken:
            raise OverflowError("its times are beyond all bounds")

    steps.also = breaks
    with pytest.raises(OverflowError):
        steps.of_a_run()

    assert len(steps.begun) == 6
    assert ("advance_failed", broken) in [(event, fields.get("key")) for event, fields in world.log]
    assert looks(world).stopped_at == ""


def test_the_function_has_time_for_the_largest_listing_and_for_a_market_that_hangs_after_it() -> None:
    listing_s = sweep.RENTALS_MAX / sweep.LISTED_PER_MINUTE * 60
    last_instance_s = lifecycle.BUDGET_S + CALL_S
    credit_and_bills_s = 2 * CALL_S
    needed_s = listing_s + reconcile.ADVANCE_FOR.total_seconds() + last_instance_s + credit_and_bills_s
    (row,) = [row for row in topology.SCHEDULES if row.name == "reconcile"]

    assert needed_s + outbox.DRAIN_S <= topology.function("reconcile").timeout_s
    assert row.deadline_s == topology.function("reconcile").timeout_s


def test_a_market_that_hangs_confirms_no_destroy_by_not_being_asked(world: World, market: Hanging) -> None:
    """Listings still come, and lack the machines; what is asked for one machine hangs."""
    ids = discarded(world, 4)
    world.next_job_at = world.now + timedelta(hours=1)
    for id in ids:
        lifecycle.advance(world.app, f"{ACCOUNT}.{id}")
        world.pass_time(10)
    assert world.sim.contracts() == []
    assert all(row.destroyed_at for row in releasing(world, ids))
    assert len(releasing(world, ids)) == 4
    market.hangs_at = "/api/v0/instances/"
    world.now += MINUTE
    reconcile.run(world.app)

    assert len(releasing(world, ids)) == 4


def test_while_a_market_hangs_a_pass_over_the_warm_pool_reaches_its_end(world: World, market: Hanging) -> None:
    """Four machines are to be destroyed; their calls would take two minutes."""
    terms = PoolTerms(size=4, gpu="H100 SXM", budget_usd_per_hour=Decimal(20))
    world.app = replace(world.app, settings=world.app.settings.model_copy(update={"pool": terms}))
    world.until(lambda: view.show(world.app, world.now).ready == 4)
    nothing = terms.model_copy(update={"size": 0})
    world.app = replace(world.app, settings=world.app.settings.model_copy(update={"pool": nothing}))
    market.hangs = True
    for _ in range(3):
        world.now += MINUTE
        market.calls = 0
        refill_warm_pool.run(world.app)
        assert market.calls <= 2
