"""What machines are metered at and billed, on a hand-cranked clock with the production defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from common.domain.host import Boot
from common.domain.instance import State
from common.domain.ledger import LedgerEntry, to_micro, to_usd
from common.domain.rental import Rental, RentalState
from common.errors import NotFound
from common.ports import App, Charge, Doc, Store, every
from common.records import dump, load, record_of, restless_rentals, unsettled_rentals
from common.workflows import budgets, hosts, settle, sweep
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
    assert rental.settled
    assert sum(entry.micro_usd for entry in ledger(world, rental.label)) > 3_000_000


class Billed:
    """A market with this bill, whatever its machines cost."""

    def __init__(self, market: Any, label: str, **usd: str) -> None:
        self._market, self._label, self.usd = market, label, usd

    def charges(self, since: datetime, until: datetime) -> list[Charge]:
        return [Charge("1", kind, since, until, usd, self._label) for kind, usd in self.usd.items()]  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._market, name)


def released(world: World, **usd: str) -> tuple[str, App, Billed]:
    """The label of a machine that ran for ten days, and a market with this bill of it."""
    id = running(world)
    ask(world, id, "discard")
    world.until(lambda: all(rental.state is RentalState.RELEASED for rental in rentals(world, id)))
    (kept,) = unsettled_rentals(world.app).values()
    since = world.now - timedelta(days=10)
    meter = kept.value.meter.model_copy(update={"disk_from": since, "gpu_from": since})
    world.store.cas(kept.doc, dump(kept.value.model_copy(update={"created_at": since, "meter": meter})))
    market = Billed(world.app.markets["vast"], kept.value.label, **usd)
    return kept.value.label, replace(world.app, markets={"vast": market}), market


def look(world: World, app: App) -> int:
    """How many are settled now."""
    world.now += timedelta(minutes=30)
    return settle.run(app, unsettled_rentals(app).values(), world.now)


def ledger(world: World, label: str) -> list[LedgerEntry]:
    return [record_of(doc, LedgerEntry) for doc in every(world.store, "ledger", [("label", "==", label)])]


def test_a_bill_of_whole_days_is_entered_in_the_hours_in_which_the_machine_ran(world: World) -> None:
    world.now = world.next_job_at = world.now.replace(hour=22, minute=30)
    id = running(world)
    write(world, id)
    world.pass_time(3 * 3600, step_s=30)
    ask(world, id, "terminate")
    world.until(lambda: world.show(id).state is State.TERMINATED)
    world.pass_time(1800, step_s=30)

    (rental,) = rentals(world, id)
    (contract,) = (c for c in world.sim.all_contracts() if c.label == rental.label)
    bill = {key: to_micro(usd) for key, usd in contract.billed(world.now).items()}
    entered = {(entry.kind, entry.hour): entry.micro_usd for entry in ledger(world, rental.label)}
    assert {hour.day for _, hour in bill} == {world.now.day - 1, world.now.day}
    assert sum(entered.values()) == sum(bill.values())
    for kind in ("gpu", "disk"):
        near = to_micro(rental.usd_per_second(kind) * 3) + 1
        ours, theirs = ({hour: usd for (of, hour), usd in found.items() if of == kind} for found in (entered, bill))
        assert ours.keys() == theirs.keys()
        assert all(abs(ours[hour] - theirs[hour]) <= near for hour in ours)
    midnight = world.now.replace(hour=0, minute=0, second=0, microsecond=0)
    today = sum((to_usd(usd) for (_, hour), usd in entered.items() if hour >= midnight), Decimal(0))
    assert budgets.spent(world.app, ACCOUNT, world.now).day_usd == today > 0


def test_the_ledger_of_a_long_life_is_written_in_passes_of_which_each_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "COMMITS_PER_PASS", 2)
    label, app, _ = released(world, gpu="93.123457", disk="1.000001")

    found = []
    while not look(world, app):
        found.append(len(ledger(world, label)))

    assert found == [198, 396, 482], "241 hours of each kind were begun"
    assert sum(entry.micro_usd for entry in ledger(world, label)) == 94_123_458
    (rental,) = (record_of(doc, Rental) for doc in world.store.query("rentals", [("state", "==", "released")]))
    assert rental.booked_micro_usd == 94_123_458


def test_what_a_bill_no_longer_says_leaves_the_ledger(world: World) -> None:
    label, app, market = released(world, gpu="93", disk="1")
    look(world, app)
    assert sum(entry.micro_usd for entry in ledger(world, label)) == 94_000_000

    market.usd = {"disk": "2"}
    look(world, app)

    assert {entry.kind for entry in ledger(world, label)} == {"disk"}
    assert sum(entry.micro_usd for entry in ledger(world, label)) == 2_000_000


class Overtaken:
    """The store of a slow pass: when it has read the ledger, another pass comes and goes."""

    def __init__(self, store: Store, other: Callable[[], object]) -> None:
        self._store, self._others = store, [other]

    def query(self, collection: str, *args: Any, **named: Any) -> list[Doc]:
        found = self._store.query(collection, *args, **named)
        while collection == "ledger" and self._others:
            self._others.pop()()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize("is_booked", [False, True])
def test_an_older_bill_that_is_written_late_replaces_nothing(world: World, is_booked: bool) -> None:
    """Neither while the newer one is entered, nor when it stands already and there is nothing left to enter of it."""
    label, app, market = released(world, gpu="93", disk="1")
    newer = replace(app, markets={"vast": Billed(market, label, gpu="94", disk="1")})
    if is_booked:
        look(world, newer)
    slow = replace(app, store=Overtaken(world.store, lambda: look(world, newer)))

    look(world, slow)

    assert sum(entry.micro_usd for entry in ledger(world, label)) == 95_000_000
    assert [look(world, newer), look(world, newer)] == [1, 0]
    assert sum(entry.micro_usd for entry in ledger(world, label)) == 95_000_000


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
    (rental,) = rentals(world, id)
    assert ledger(world, rental.label) == []


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
