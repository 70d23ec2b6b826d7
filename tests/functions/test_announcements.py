"""What a marketplace announces makes us look at once; what nobody signed, or was announced before, does nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from common.domain.account import Role
from common.domain.instance import State
from common.domain.rental import RentalState
from common.errors import BadRequest, Throttled, Unauthenticated
from common.records import load
from common.workflows import announcements, lifecycle, sweep
from infra.demo.wire import Request
from tests.functions.conftest import Api, key_for
from tests.functions.test_story_by_hand import running
from tests.hand_cranked import ACCOUNT, World


def deliver(world: World) -> list[int]:
    """What the marketplace does with its due events; the statuses it gets."""
    statuses = []
    for delivery in world.sim.webhooks.take_due(world.now):
        _, headers = world.sim.webhooks.signed(delivery, world.now)
        statuses.append(receive(world, headers, delivery.body))
        world.sim.webhooks.answered(delivery, statuses[-1], world.now)
    return statuses


def receive(world: World, headers: dict[str, str], body: bytes) -> int:
    """The function's handler without HTTP around it."""
    try:
        lifecycle.announced(world.app, "vast", headers, body)
    except (Unauthenticated, BadRequest, Throttled) as error:
        return error.status
    return 204


@pytest.fixture
def subscribed(world: World, admin: Api) -> World:
    answer = admin.post("/markets/vast/webhook")
    assert answer.json == {"url": "https://functions.sim/failover/vast"}
    return world


def outbid(world: World, id: str) -> str:
    label = world.record(id).writer
    assert label
    contract = world.sim.contract_of(label)
    assert contract
    world.pass_time(2)
    world.sim.outbid(contract, world.now)
    return label


def state_of(world: World, id: str, label: str) -> RentalState:
    return load(world.app, f"{ACCOUNT}.{id}").rentals[label].value.state


def test_an_outbid_machine_is_replaced_when_it_is_announced_not_a_minute_later(subscribed: World) -> None:
    id = running(subscribed)
    label = outbid(subscribed, id)

    assert deliver(subscribed) == [204]

    assert state_of(subscribed, id, label) is RentalState.RELEASING
    assert subscribed.show(id).state is State.PROVISIONING


def test_an_event_that_comes_twice_is_looked_at_once(subscribed: World) -> None:
    id = running(subscribed)
    subscribed.sim.webhooks.twice = True
    outbid(subscribed, id)
    assert deliver(subscribed) == [204, 204]
    after = subscribed.record(id)

    assert deliver(subscribed) == []
    assert subscribed.record(id) == after
    assert len(subscribed.store.query("rentals", [("instance_key", "==", f"{ACCOUNT}.{id}")])) <= 2


def test_what_is_forged_stale_or_garbled_does_nothing(subscribed: World) -> None:
    id = running(subscribed)
    label = outbid(subscribed, id)
    (delivery,) = subscribed.sim.webhooks.take_due(subscribed.now)
    _, headers = subscribed.sim.webhooks.signed(delivery, subscribed.now)

    forged: list[tuple[dict[str, str], bytes]] = [
        ({}, delivery.body),
        (headers, delivery.body + b" "),
        ({**headers, "X-Vast-Timestamp": "1"}, delivery.body),
        ({**headers, "X-Vast-Signature-256": "sha256=ümlaut"}, delivery.body),
    ]
    for case in forged:
        assert receive(subscribed, *case) == 401
    subscribed.now = subscribed.now.replace(hour=subscribed.now.hour + 1)
    assert receive(subscribed, headers, delivery.body) == 401
    assert state_of(subscribed, id, label) is RentalState.SERVING


def test_an_event_that_could_not_be_followed_is_delivered_again(subscribed: World) -> None:
    id = running(subscribed)
    outbid(subscribed, id)
    subscribed.market.list()  # the vendor takes one listing a second

    assert deliver(subscribed) == [503]
    subscribed.now = subscribed.now.replace(minute=subscribed.now.minute + 1)
    assert deliver(subscribed) == [204]
    assert subscribed.show(id).state is State.PROVISIONING


def test_subscribing_again_changes_nothing_and_a_lost_secret_is_made_anew(subscribed: World, admin: Api) -> None:
    before = dict(subscribed.sim.webhooks.rows)

    admin.post("/markets/vast/webhook")
    assert subscribed.sim.webhooks.rows == before

    doc = subscribed.store.get("subscriptions", "vast")
    assert doc
    subscribed.store.delete(doc)
    announcements.subscribe(subscribed.app, "vast", subscribed.now)
    assert len(subscribed.sim.webhooks.rows) == 1
    assert subscribed.sim.webhooks.rows != before


def test_only_an_admin_subscribes_and_only_to_a_market_that_announces(world: World, admin: Api) -> None:
    member = Api(world, key_for(world, "acme", Role.MEMBER))
    tenant = Api(world, key_for(world, "tenant", Role.ADMIN))

    assert tenant.get("/markets").status_code == 403
    assert tenant.post("/markets/vast/webhook").status_code == 403
    assert member.post("/markets/vast/webhook").status_code == 403
    assert admin.post("/markets/nowhere/webhook").status_code == 404


def test_everything_hibernates_before_the_credit_is_gone(world: World, admin: Api) -> None:
    ids = [running(world) for _ in range(2)]
    burn = sum(float(world.show(id).cost.usd_per_hour) for id in ids)
    world.sim.set_credit(f"{burn * 0.9 + 1:.4f}")  # an hour and a little for what was spent before
    world.pass_time(3600, step_s=5)

    shown: dict[str, Any] = admin.get("/markets").json["items"][0]
    assert [world.show(id).state for id in ids] == [State.HIBERNATED] * 2
    assert all("the credit at vast lasts" in world.show(id).reason for id in ids)
    assert world.sim.credit(world.now) > 0
    assert shown["name"] == "vast"


def test_whoever_runs_the_deployment_is_told_once_that_the_credit_is_low(world: World, admin: Api) -> None:
    hook = admin.post("/webhooks", {"url": "https://example.com/hook", "kinds": ["credit.low"]})
    assert hook.status_code == 201, hook.text
    id = running(world)
    world.sim.set_credit(f"{float(world.show(id).cost.usd_per_hour) * 5:.4f}")

    world.pass_time(300)

    waiting = admin.get("/messages?state=waiting").json["items"]
    assert [message["kind"] for message in waiting] == ["credit.low"]


def test_a_dry_run_names_what_the_sweep_would_destroy_and_touches_nothing(world: World, admin: Api) -> None:
    id = running(world)
    label = world.record(id).writer
    assert label
    world.sim.handle(
        Request("PUT", "/api/v0/asks/7000/", {}, {"Authorization": "Bearer sim-key"}, b'{"label": "somebody-elses"}'),
        world.now,
    )
    doc = world.store.get("rentals", label)
    assert doc
    world.store.cas(doc, {**doc.data, "state": "releasing"})
    world.pass_time(0)
    world.now += timedelta(seconds=5)

    seen = admin.get("/markets/sweep").json

    assert seen == {
        "listed": 2,
        "foreign": 1,
        "orphans": [label],
        "alarms": [],
        "unknown": [],
        "orphan_bound_s": 180,
    }
    assert world.sim.contract_of(label)
    assert Api(world, key_for(world, "tenant", Role.ADMIN)).get("/markets/sweep").status_code == 403


@pytest.mark.parametrize(("rentals", "bound_s"), [(0, 180), (1000, 180), (3000, 540), (5000, 900)])
def test_the_orphan_bound_is_three_minutes_up_to_1000_rentals_and_fifteen_at_most(rentals: int, bound_s: float) -> None:
    assert sweep.orphan_bound_s(rentals) == bound_s


def test_a_machine_that_the_market_stopped_shows_what_its_disk_still_costs(world: World) -> None:
    id = running(world)
    label = outbid(world, id)
    rental = load(world.app, f"{ACCOUNT}.{id}").rentals[label].value
    sweep.run(world.app, world.now)

    (row,) = [row for row in world.show(id).rentals if row.label == label]
    assert row.now_usd_per_hour == rental.offer.disk_usd_per_hour(rental.disk_gb)
    assert row.now_usd_per_hour < row.usd_per_hour
