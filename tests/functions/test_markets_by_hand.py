"""Two marketplaces behind one instance, on a hand-cranked clock: prices, bills, credit and machines that lie."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from common.adapters.s3 import S3
from common.domain.instance import State
from common.domain.offer import Offer
from common.domain.rental import Rental, RentalState
from common.domain.spec import Spec
from common.errors import NoOffer, Throttled
from common.records import load, unsettled_rentals
from common.workflows import lifecycle, offers, settle, terminate
from infra.demo.s3_server import S3Server
from tests.hand_cranked import ACCOUNT, World

ONLY_TENSORDOCK = "RTX A6000"
MICRO = Decimal("0.000001")


@pytest.fixture
def both(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects, with_tensordock=True)
    yield made
    made.close()


def running(world: World, **spec: object) -> str:
    id = world.provision(**spec)
    world.until(lambda: world.show(id).state is State.RUNNING)
    return id


def rentals(world: World, id: str) -> list[Rental]:
    docs = world.store.query("rentals", [("instance_key", "==", f"{ACCOUNT}.{id}")])
    return [Rental.model_validate(doc.data) for doc in docs]


def discard(world: World, id: str) -> None:
    key = f"{ACCOUNT}.{id}"
    terminate.request(world.app, load(world.app, key), discard=True, now=world.now)
    lifecycle.hint(world.app, key)


# --- the price cap


def test_a_machine_that_is_dearer_than_shown_is_released_at_once_and_another_round_is_made(world: World) -> None:
    world.sim.price_factor = Decimal("1.5")
    id = world.provision(gpu="RTX 4090")
    world.pass_time(10)

    (dear,) = rentals(world, id)
    assert dear.state in (RentalState.RELEASING, RentalState.RELEASED)
    assert "price_above_cap" in dear.message
    assert world.sim.contracts() == []
    assert sum(world.sim.billed(9001, world.now).values()) < Decimal("0.01")

    world.sim.price_factor = Decimal(1)
    world.until(lambda: world.show(id).state is State.RUNNING, within_s=120)
    assert world.show(id).cost.metered_usd > 0


def test_a_market_that_can_refuse_a_price_before_renting_does(both: World) -> None:
    offered(both, Spec(gpu=ONLY_TENSORDOCK))
    both.now += timedelta(seconds=10)
    both.dock_sim.price_factor = Decimal("1.5")  # the price rises between the search and the create
    id = both.provision(gpu=ONLY_TENSORDOCK)
    both.pass_time(2)

    refused, second = sorted(rentals(both, id), key=lambda rental: rental.created_at)
    assert refused.message.startswith("offer_gone: the price rose")
    assert second.offer.gpu_usd_per_hour > refused.offer.gpu_usd_per_hour
    assert second.cap_usd_per_hour == second.offer.usd_per_hour(32) * Decimal("1.02")
    assert [machine.label for machine in both.dock_sim.all_contracts()] == [second.label]


def offered(world: World, spec: Spec) -> list[Offer]:
    return [ranked.offer for ranked in offers.for_user(world.app, spec, world.now)]


def test_the_users_cap_counts_where_it_is_lower_than_what_was_shown_with_its_slack(world: World) -> None:
    shown = offered(world, Spec(gpu="RTX 4090"))[0].usd_per_hour(32)
    cap = shown * Decimal("1.005")
    id = world.provision(gpu="RTX 4090", max_usd_per_hour=cap)
    world.pass_time(5)

    assert rentals(world, id)[0].cap_usd_per_hour == cap


# --- a market without a bill and without a balance


def test_the_ledger_of_a_market_without_a_bill_says_that_it_is_computed_and_is_right(both: World) -> None:
    id = running(both, gpu=ONLY_TENSORDOCK)
    both.pass_time(4000, step_s=5)
    discard(both, id)
    both.until(lambda: both.show(id).state is State.TERMINATED)
    both.pass_time(300, step_s=5)
    settle.run(both.app, unsettled_rentals(both.app).values(), both.now)

    (rental,) = rentals(both, id)
    contract = both.dock_sim.all_contracts()[0]
    bill = both.dock_sim.billed(contract.id, both.now)
    entries = [doc.data for doc in both.store.query("ledger", [("label", "==", rental.label)])]
    assert rental.settled
    assert {entry["source"] for entry in entries} == {"computed"}
    assert len({entry["hour"] for entry in entries}) == 2
    for kind in ("gpu", "disk"):
        ledger = sum(Decimal(entry["micro_usd"]) * MICRO for entry in entries if entry["kind"] == kind)
        assert abs(ledger - bill[kind]) <= rental.usd_per_second(kind) + 2 * MICRO


def test_a_released_machine_whose_destroys_were_never_answered_well_stops_metering(both: World) -> None:
    id = running(both, gpu=ONLY_TENSORDOCK)
    both.dock_sim.deletes_fail = 10**6
    discard(both, id)
    both.pass_time(120)
    assert len(both.dock_sim.contracts()) == 1
    both.dock_sim.lose(both.dock_sim.contracts()[0].id, both.now)
    both.until(lambda: rentals(both, id)[0].state is RentalState.RELEASED, within_s=180)

    metered = rentals(both, id)[0].metered_usd(both.now)
    both.pass_time(600, step_s=10)

    assert rentals(both, id)[0].metered_usd(both.now) == metered


def test_a_delete_answered_500_is_asked_again_until_the_machine_is_gone(both: World) -> None:
    id = running(both, gpu=ONLY_TENSORDOCK)
    both.dock_sim.deletes_fail = 2
    discard(both, id)

    both.until(lambda: not both.dock_sim.contracts(), within_s=180)
    both.until(lambda: rentals(both, id)[0].state is RentalState.RELEASED, within_s=120)


def test_a_machine_stopped_by_a_market_that_tells_no_credit_is_kept_until_a_snapshot_covers_it(both: World) -> None:
    id = running(both, gpu=ONLY_TENSORDOCK)
    (both.workspace(id) / "notes.txt").write_text("worth keeping\n")
    stopped = both.record(id).writer
    assert stopped
    both.dock_sim.outbid(both.dock_sim.contract_of(stopped), both.now)
    both._carry_out()

    both.until(lambda: both.record(id).writer not in (stopped, None))
    assert both.record(id).held == stopped
    assert both.dock_sim.contract_of(stopped) is not None

    both.until(lambda: both.record(id).held is None, within_s=1500)
    both.until(lambda: both.dock_sim.contract_of(stopped) is None)


def test_the_address_of_a_machine_whose_market_lists_names_only_is_known(both: World) -> None:
    id = running(both, gpu=ONLY_TENSORDOCK)
    both.until(lambda: both.show(id).address is not None, within_s=120)

    address = both.show(id).address
    assert address
    assert (address.host, address.user) == ("127.0.0.1", "root")


def test_a_machine_that_the_listing_omits_for_an_hour_is_not_lost(both: World) -> None:
    id = running(both, gpu=ONLY_TENSORDOCK)
    writer = both.record(id).writer
    both.dock_sim.list_omits.add(both.dock_sim.contract_of(writer or ""))

    both.pass_time(3600, step_s=10)

    assert both.record(id).writer == writer
    assert both.show(id).state is State.RUNNING


# --- one market fails, the other one serves


def test_a_market_that_does_not_answer_hides_no_other_ones_offers(both: World) -> None:
    both.sim.search_quota_used = True

    found = offered(both, Spec(gpu="H100 SXM"))

    assert {offer.provider for offer in found} == {"tensordock"}


def test_an_empty_account_at_one_market_leaves_the_other_one(both: World) -> None:
    both.sim.set_credit("0")

    id = running(both, gpu="RTX 4090")

    assert [r.provider for r in rentals(both, id) if r.state is RentalState.SERVING] == ["tensordock"]
    assert {r.message.partition(":")[0] for r in rentals(both, id) if r.provider == "vast"} == {"no_credit"}


def test_when_every_account_is_empty_the_wish_fails_with_that_word(both: World) -> None:
    both.sim.set_credit("0")
    both.dock_sim.set_credit("0")
    id = both.provision(gpu="RTX 4090")

    both.until(lambda: both.show(id).state is State.FAILED, within_s=400)

    failure = both.show(id).failure
    assert failure
    assert failure.code == "no_credit"
    assert both.sim.contracts() == []
    assert both.dock_sim.contracts() == []


def test_who_chose_an_image_is_offered_containers_only(both: World) -> None:
    chosen = offered(both, Spec(gpu="H100 SXM", image="nvcr.io/nvidia/pytorch:25.01-py3"))

    assert {offer.provider for offer in chosen} == {"vast"}
    with pytest.raises(NoOffer):
        offered(both, Spec(gpu=ONLY_TENSORDOCK, image="nvcr.io/nvidia/pytorch:25.01-py3"))


# --- searches are scarce


def test_the_same_wish_is_searched_once_in_half_a_minute(world: World) -> None:
    first = offered(world, Spec(gpu="RTX 4090"))
    world.rent_elsewhere(first[0])

    again = offered(world, Spec(gpu="RTX 4090"))
    world.now += timedelta(seconds=offers.FRESH_FOR_S)
    later = offered(world, Spec(gpu="RTX 4090"))

    assert again == first
    assert first[0].machine_id not in {offer.machine_id for offer in later}


def test_who_only_looks_gets_the_last_answer_when_no_search_has_a_turn(world: World) -> None:
    first = offered(world, Spec(gpu="RTX 4090"))
    for disk_gb in range(40, 43):
        offered(world, Spec(gpu="RTX 4090", disk_gb=disk_gb))
    world.now += timedelta(seconds=offers.FRESH_FOR_S)
    for disk_gb in range(50, 54):
        try:
            offered(world, Spec(gpu="RTX 4090", disk_gb=disk_gb))
        except Throttled:
            break

    assert offered(world, Spec(gpu="RTX 4090")) == first
    assert world.throttled == []


def test_a_search_without_a_turn_sets_the_time_of_the_next_and_counts_no_round(world: World) -> None:
    ids = [world.provision(gpu="RTX 4090", disk_gb=40 + n) for n in range(8)]

    waiting = [world.record(id) for id in ids if not world.record(id).race]

    assert len(waiting) == 4
    assert all(record.rounds == 0 and record.not_before and record.not_before > world.now for record in waiting)
    world.until(lambda: all(world.show(id).state is State.RUNNING for id in ids), within_s=300)
    assert world.throttled == []


def test_an_offer_that_was_taken_since_the_search_costs_seconds_and_no_round_of_waiting(world: World) -> None:
    first = offered(world, Spec(gpu="RTX 4090"))[0]
    world.rent_elsewhere(first)
    world.now += timedelta(seconds=10)
    id = world.provision(gpu="RTX 4090")

    took_s = world.until(lambda: world.show(id).state is State.RUNNING, within_s=60)

    gone = [rental for rental in rentals(world, id) if rental.message.startswith("offer_gone")]
    assert [rental.offer.machine_id for rental in gone] == [first.machine_id]
    assert took_s < world.timing.round_backoff_s
    assert world.throttled == []
