"""What users are told, and what their caps do, on a hand-cranked clock with a real receiver on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from common.adapters.courier import HttpCourier
from common.cli import fleet, session
from common.domain.account import Role
from common.domain.instance import State
from common.domain.outbox import ATTEMPTS_MAX, Kind, Message, MessageState
from common.errors import DeliveryFailed, StoreUnavailable
from common.ports import App
from common.records import dump, read
from common.workflows import outbox
from tests.functions.conftest import Api, key_for
from tests.functions.test_cli import signed_in
from tests.functions.test_rest import problem
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import World
from tests.unit.adapters.test_courier import Receiver, receiver

__all__ = ["receiver", "signed_in"]
WISH = {"gpu": "H100 SXM"}
run = CliRunner()


@pytest.fixture
def told(world: World, receiver: Receiver) -> Iterator[Receiver]:
    """The world delivers to loopback."""
    courier = HttpCourier(loopback_allowed=True)
    settings = world.app.settings.model_copy(update={"webhook_loopback": True})
    world.app = dataclasses.replace(world.app, courier=courier, settings=settings)
    yield receiver
    courier.close()


def hook(admin: Api, receiver: Receiver, **more: object) -> dict:
    answer = admin.post("/webhooks", {"url": f"http://127.0.0.1:{receiver.port}/hook", **more})
    assert answer.status_code == 201, answer.text
    return answer.json


def kinds(receiver: Receiver) -> list[str]:
    return [json.loads(request.get_data())["kind"] for request in receiver.heard]


# --- the outbox


def test_what_happens_to_an_instance_is_posted_signed_to_its_accounts_webhooks(
    world: World, told: Receiver, admin: Api
) -> None:
    secret = hook(admin, told)["secret"]
    id = running(world)
    write(world, id)
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    world.until(lambda: len(told.heard) >= 2)

    assert kinds(told) == ["instance.running", "instance.hibernated"]
    request = told.heard[0]
    assert json.loads(request.get_data())["instance_id"] == id
    stamp, mac = (part.partition("=")[2] for part in request.headers["Dumont-Signature"].split(","))
    expected = hmac.new(secret.encode(), f"{stamp}.".encode() + request.get_data(), hashlib.sha256).hexdigest()
    assert mac == expected


def test_a_webhook_hears_only_the_kinds_it_asked_for_and_another_account_hears_nothing(
    world: World, told: Receiver, admin: Api
) -> None:
    hook(admin, told, kinds=["instance.lost"])
    hook(Api(world, key_for(world, "other", Role.ADMIN)), told)

    id = running(world)
    contract = world.sim.contract_of(world.record(id).writer or "")
    assert contract
    world.sim.lose(contract, world.now)
    world._carry_out()
    world.until(lambda: bool(told.heard), within_s=900)

    assert kinds(told) == ["instance.lost"]


def test_a_webhook_that_hangs_holds_up_nobody_elses_messages(world: World, admin: Api) -> None:
    taken: list[datetime] = []

    def post(url: str, payload: bytes, headers: Mapping[str, str]) -> None:
        if "hangs" in url:
            world.now += timedelta(seconds=5)
            raise DeliveryFailed("ReadTimeout")
        taken.append(world.now)

    world.app = dataclasses.replace(world.app, courier=SimpleNamespace(post=post))
    Api(world, key_for(world, "other", Role.ADMIN)).post("/webhooks", {"url": "https://hangs.example.com/"})
    admin.post("/webhooks", {"url": "https://answers.example.com/"})
    for account in ["other"] * 60 + ["acme"]:
        world.store.commit(outbox.tell(world.app, account, Kind.RUNNING, {"text": "ready"}, world.now))
        world.now += timedelta(milliseconds=1)
    since = world.now

    outbox.follow(world.app, lambda _seconds: None, outbox.WEBHOOKS)

    assert [(at - since).total_seconds() < outbox.DRAIN_S for at in taken] == [True]


def test_a_message_is_retried_under_one_id_until_it_is_taken(world: World, told: Receiver, admin: Api) -> None:
    hook(admin, told, kinds=["instance.running"])
    told.status = 503
    running(world)
    world.until(lambda: len(told.heard) >= 3, within_s=900)
    told.status = 204
    heard = len(told.heard)
    world.until(lambda: len(told.heard) > heard, within_s=900)
    world.pass_time(1200, step_s=10)

    assert len({request.headers["Dumont-Id"] for request in told.heard}) == 1
    assert len({request.get_data() for request in told.heard}) == 1
    assert len(told.heard) == heard + 1
    assert [m["state"] for m in admin.get("/messages?state=done").json["items"]] == ["done"]


def test_a_message_nobody_takes_becomes_a_dead_letter_that_can_be_tried_again(
    world: World, told: Receiver, admin: Api
) -> None:
    hook(admin, told, kinds=["instance.running"])
    told.status = 500
    running(world)
    world.until(lambda: bool(told.heard))
    while waiting := admin.get("/messages?state=waiting").json["items"]:
        world.now = max(datetime.fromisoformat(item["next_at"]) for item in waiting)
        outbox.drain(world.app, world.now)

    (dead,) = admin.get("/messages").json["items"]
    assert (dead["attempts"], dead["next_at"], dead["error"]) == (ATTEMPTS_MAX, None, "127.0.0.1 answered 500")
    told.status = 200
    assert admin.post(f"/messages/{dead['id']}/retry").json["state"] == "waiting"
    problem(admin.post(f"/messages/{dead['id']}/retry"), 409, "illegal_move")
    outbox.drain(world.app, world.now)
    assert admin.get("/messages?state=done").json["items"][0]["id"] == dead["id"]


class Unanswering:
    """A store that does not answer one write of a known document: the how-manieth from now on."""

    def __init__(self, store: Any) -> None:
        self._store, self.fails_in = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def cas(self, doc: Any, data: Any) -> Any:
        self.fails_in -= 1
        if self.fails_in == 0:
            raise StoreUnavailable("no answer")
        return self._store.cas(doc, data)


@pytest.mark.parametrize("fails_in", [1, 2])
def test_who_was_overtaken_while_it_spoke_has_it_said_again_though_the_store_fails_once(
    world: World, told: Receiver, fails_in: int
) -> None:
    """It held a claim for too long: another run said newer words and was done, and then its own older ones arrived."""
    store = Unanswering(world.store)
    app = dataclasses.replace(world.app, store=store)
    errand = Message(
        id="errand",
        account="acct",
        kind="slack.errand",
        target="slack:T.U",
        body={"operation_id": "op", "shown": "new"},
        next_at=world.now,
        created_at=world.now,
    )
    world.store.create("outbox", errand.id, dump(errand))

    def spoken_late(_app: App, message: Message) -> Message:
        claimed = world.store.get("outbox", message.id)
        world.store.cas(claimed, dump(message.delivered(world.now)))  # the other run
        store.fails_in = fails_in
        return message.delivered(world.now)

    with suppress(StoreUnavailable):  # as the run that this is part of would end
        outbox.drain(app, world.now, {"slack": spoken_late})

    again = read(app, "outbox", errand.id, Message)
    assert again
    assert (again.value.state, again.value.body["shown"]) == (MessageState.WAITING, "")


def test_a_removed_webhooks_messages_are_dead_letters(world: World, told: Receiver, admin: Api) -> None:
    made = hook(admin, told)
    told.status = 503
    running(world)
    world.until(lambda: bool(told.heard))
    assert admin.call("DELETE", f"/api/v1/webhooks/{made['id']}").status_code == 204
    world.pass_time(180, step_s=61)

    assert admin.get("/messages").json["items"][0]["error"] == "the webhook was removed"


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://169.254.169.254/", "https://localhost/", "x"])
def test_a_webhook_to_an_unsafe_url_is_refused(admin: Api, url: str) -> None:
    problem(admin.post("/webhooks", {"url": url}), 422, "webhook_refused")


def test_webhooks_have_a_limit_their_secret_is_shown_once_and_they_are_private(world: World, admin: Api) -> None:
    other = Api(world, key_for(world, "other", Role.ADMIN))
    made = [admin.post("/webhooks", {"url": f"https://hooks.example.com/{n}"}).json for n in range(10)]

    problem(admin.post("/webhooks", {"url": "https://hooks.example.com/11"}), 422, "webhook_refused")
    assert all(item["secret"] is None for item in admin.get("/webhooks").json["items"])
    assert len({item["secret"] for item in made}) == 10
    assert other.get("/webhooks").json["items"] == []
    problem(other.call("DELETE", f"/api/v1/webhooks/{made[0]['id']}"), 404, "not_found")
    problem(admin.post("/messages/nobody/retry"), 404, "not_found")


def test_a_webhook_made_again_with_the_same_key_is_the_same_webhook(admin: Api) -> None:
    wish = {"url": "https://hooks.example.com/"}
    first = admin.post("/webhooks", wish, Idempotency_Key="k1").json
    again = admin.post("/webhooks", wish, Idempotency_Key="k1").json

    assert first == again
    assert len(admin.get("/webhooks").json["items"]) == 1


# --- budgets


def test_a_budget_is_set_by_an_admin_and_shown_to_all(world: World, admin: Api) -> None:
    member = Api(world, key_for(world, "acme", Role.MEMBER))

    problem(member.call("PUT", "/api/v1/budget", {"usd_per_day": "5"}), 403, "forbidden")
    put = admin.call("PUT", "/api/v1/budget", {"usd_per_hour": "1.5", "usd_per_day": None})
    assert (put.status_code, put.json["usd_per_hour"], put.json["findings"]) == (200, "1.5", [])
    assert member.get("/budget").json["usd_per_hour"] == "1.5"
    problem(admin.call("PUT", "/api/v1/budget", {"usd_per_hour": "-1"}), 422, "invalid_input")


def test_a_start_that_the_hourly_cap_does_not_allow_is_refused_and_rents_nothing(world: World, admin: Api) -> None:
    admin.call("PUT", "/api/v1/budget", {"usd_per_hour": "1"})

    problem(admin.post("/instances/provision", WISH), 402, "budget_exceeded")
    assert admin.get("/instances").json["items"] == []
    admin.call("PUT", "/api/v1/budget", {"usd_per_hour": "100"})
    assert admin.post("/instances/provision", WISH).status_code == 202


def test_a_predicted_breach_is_told_once_and_a_breach_hibernates_with_a_snapshot(
    world: World, told: Receiver, admin: Api
) -> None:
    hook(admin, told, kinds=["budget.warning", "budget.exceeded"])
    id = running(world)
    write(world, id, "kept\n")
    admin.call("PUT", "/api/v1/budget", {"usd_per_day": "0.20"})

    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=1200)
    world.pass_time(180, step_s=5)

    assert kinds(told) == ["budget.warning", "budget.exceeded"]
    shown = world.show(id)
    assert shown.snapshot
    assert shown.reason.startswith("the budget is used up")
    assert world.sim.contracts() == []
    spent = float(admin.get("/budget").json["day_usd"])
    assert 0.20 <= spent < 0.35


def test_a_used_up_budget_refuses_the_wake_until_the_cap_is_raised(world: World, admin: Api) -> None:
    id = running(world)
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    admin.call("PUT", "/api/v1/budget", {"usd_per_day": "0.0001"})

    problem(admin.post(f"/instances/{id}/wake"), 402, "budget_exceeded")
    admin.call("PUT", "/api/v1/budget", {"usd_per_hour": "1"})
    problem(admin.post(f"/instances/{id}/wake"), 402, "budget_exceeded")
    admin.call("PUT", "/api/v1/budget", {})

    assert admin.post(f"/instances/{id}/wake").status_code == 202


def test_another_accounts_budget_is_its_own(world: World, admin: Api) -> None:
    other = Api(world, key_for(world, "other", Role.ADMIN))
    other.call("PUT", "/api/v1/budget", {"usd_per_hour": "0"})

    assert admin.post("/instances/provision", WISH).status_code == 202
    assert admin.get("/budget").json["usd_per_hour"] is None


def test_the_command_line_sets_and_shows_a_budget(signed_in: World) -> None:
    put = run.invoke(fleet.budget, ["set", "--usd-per-hour", "2", "--json"])
    shown = run.invoke(fleet.budget, ["show"])
    refused = run.invoke(fleet.gpus, ["deploy", "H100 SXM", "--yes", "--no-wait"])

    assert json.loads(put.stdout)["usd_per_hour"] == "2"
    assert "per hour: 0.0000 USD spent, 0.0000 predicted, cap 2\n" in shown.stdout
    assert refused.exit_code == session.CONFLICT
