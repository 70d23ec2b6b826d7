"""What machines are metered at and billed, on a hand-cranked clock with the production defaults."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from common.domain.host import Boot
from common.domain.instance import State
from common.domain.rental import RentalState
from common.errors import NotFound
from common.ports import Charge
from common.records import dump, load, restless_rentals, unsettled_rentals
from common.workflows import hosts, settle, sweep
from tests.functions.test_story_by_hand import ask, rentals, running, write
from tests.hand_cranked import ACCOUNT, World


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


def test_while_its_host_is_offline_neither_part_of_a_machine_is_metered(world: World) -> None:
    id, away_s, look_s = running(world), 1800.0, int(world.timing.reconcile_every_s)
    (contract,) = world.sim.contracts()
    for _ in range(2):
        world.sim.offline(contract.id, world.now)
        world.pass_time(away_s)
        assert next(r for r in rentals(world, id) if r.label == contract.label).now_usd_per_hour == 0
        world.sim.offline(contract.id, world.now, back=True)
        world.pass_time(300)
    ask(world, id, "terminate")
    world.until(lambda: not world.sim.contracts())

    rental = next(r for r in rentals(world, id) if r.label == contract.label)
    bill, metered = world.sim.billed(contract.id, world.now), rental.metered_usd(world.now)
    for kind in ("gpu", "disk"):
        # each time it went and came back it was noticed with the next listing
        assert abs(metered[kind] - bill[kind]) <= rental.usd_per_second(kind) * 2 * (look_s + 6)


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
