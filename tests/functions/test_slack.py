"""`/gpu` from the keystroke to the machine, over the real function, the real adapter and a simulated workspace."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from common import topology
from common.domain.account import Role
from common.domain.instance import Instance, Phase, State, Want
from common.domain.spec import Spec
from common.records import dump, load
from infra.demo.slack import CHANNEL, buttons
from tests.functions.conftest import Api, key_for
from tests.functions.slack_people import Somebody, ada, another_admin, text_of
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import World

__all__ = ["ada"]


# --- who


def test_help_is_for_everybody_and_everywhere(world: World) -> None:
    stranger = Somebody(world)
    world.app = dataclasses.replace(
        world.app, settings=world.app.settings.model_copy(update={"slack_channels": frozenset({"C1"})})
    )

    assert "/gpu wake" in text_of(stranger.types("help"))
    assert "/gpu wake" in text_of(stranger.types(""))
    assert stranger.statuses == [200, 200]


def test_somebody_who_is_not_linked_is_told_how_and_nothing_happens(world: World) -> None:
    id = running(world)
    stranger = Somebody(world)

    answer = stranger.types(f"hibernate {id}")

    assert stranger.statuses == [200]
    assert "dumont slack link" in text_of(answer)
    world.pass_time(120, step_s=5)
    assert world.show(id).state is State.RUNNING


def test_a_code_links_once_and_not_after_ten_minutes(world: World) -> None:
    ada, admin = Somebody(world), Api(world, key_for(world, "acme", Role.ADMIN))

    def new_code() -> str:
        shown = ada.types("link")["blocks"][0]["text"]["text"]
        return shown.split("link ")[1].strip("`")

    code = new_code()
    assert admin.post("/slack/link", {"code": code}).status_code == 201
    assert admin.post("/slack/link", {"code": code}).json["code"] == "bad_code"
    assert admin.post("/slack/link", {"code": "k3v9x2m4q7ab"}).json["code"] == "bad_code"
    late = new_code()
    world.now += timedelta(minutes=10)
    assert admin.post("/slack/link", {"code": late}).json["code"] == "bad_code"


def test_who_is_unlinked_or_removed_is_nobody_again(world: World) -> None:
    ada, bob = Somebody(world).is_linked(), Somebody(world, "U0BOB00001").is_linked(role=Role.MEMBER)
    admin = Api(world, another_admin(world))
    (adas,) = [item for item in admin.get("/slack/links").json["items"] if item["slack_user"] == ada.user]

    assert admin.call("DELETE", f"/api/v1/slack/links/{adas['id']}").status_code == 204
    (bobs,) = [user for user in admin.get("/users").json["items"] if user["email"] == "member@acme.example"]
    assert admin.call("DELETE", f"/api/v1/users/{bobs['id']}").status_code == 204

    for person in (ada, bob):
        assert "dumont slack link" in text_of(person.types("list"))


def test_a_viewer_may_look_and_not_touch(world: World) -> None:
    id = running(world)
    viewer = Somebody(world).is_linked(role=Role.VIEWER)

    assert id in text_of(viewer.asks("list").content)
    assert "role viewer may not" in text_of(viewer.types(f"hibernate {id}"))
    message = viewer.asks(f"show {id}")
    assert "role viewer may not" in text_of(viewer.presses(message, "Hibernate"))
    world.pass_time(60)
    assert world.show(id).state is State.RUNNING


def test_a_key_that_may_do_less_than_its_user_links_nobody_as_that_user(world: World) -> None:
    id = running(world)
    eve, admin = Somebody(world), Api(world, key_for(world, "acme", Role.ADMIN))
    leaked = Api(world, admin.post("/api-keys", {"name": "dashboard", "role": "viewer"}).json["key"])
    code = eve.types("link")["blocks"][0]["text"]["text"].split("link ")[1].strip("`")

    assert leaked.post("/slack/link", {"code": code}).json["code"] == "forbidden"

    assert "dumont slack link" in text_of(eve.types(f"hibernate {id}"))
    assert admin.post("/slack/link", {"code": code}).status_code == 201


def test_another_accounts_instances_do_not_exist(world: World, ada: Somebody) -> None:
    id = running(world)
    eve = Somebody(world, "U0EVE00001").is_linked("evil")

    assert id not in text_of(eve.asks("list").content)
    assert "You have no instance" in text_of(eve.asks(f"hibernate {id}").content)
    stolen = ada.asks(f"show {id}")
    eve.presses(stolen, "Hibernate")
    world.pass_time(60)
    assert world.show(id).state is State.RUNNING


def test_only_allowed_channels_are_listened_to(world: World, ada: Somebody) -> None:
    settings = world.app.settings.model_copy(update={"slack_channels": frozenset({CHANNEL})})
    world.app = dataclasses.replace(world.app, settings=settings)

    assert "not used in this channel" in text_of(ada.types("list", channel="C0OTHER001"))
    assert "no instances" in text_of(ada.asks("list").content)


def test_buttons_of_direct_messages_work_wherever_commands_are_taken(world: World, ada: Somebody) -> None:
    settings = world.app.settings.model_copy(update={"slack_channels": frozenset({CHANNEL})})
    world.app = dataclasses.replace(world.app, settings=settings)
    id = running(world)
    world.until(lambda: any("*Ready*" in text_of(m.content) for m in ada.reads()))
    ready = next(m for m in ada.reads() if "*Ready*" in text_of(m.content))

    ada.presses(ready, "Hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)


# --- what


def test_a_deploy_shows_its_price_is_approved_and_is_followed_in_one_message(world: World, ada: Somebody) -> None:
    plan = ada.asks("deploy h100 sxm as trainer")

    assert world.sim.contracts() == []
    assert "USD/h" in text_of(plan.content)
    ada.presses(plan, "Approve")
    world.until(lambda: "running" in text_of(plan.content), within_s=600)
    (instance,) = Api(world, another_admin(world)).get("/instances").json["items"]
    assert (instance["name"], instance["state"]) == ("trainer", "running")
    told = [text_of(version) for version in plan.versions]
    assert any("provisioning" in text for text in told)
    assert "ssh -p" in told[-1] or "Address" not in told[-1]
    assert not world.slack_sim.refusals


def test_an_approved_price_is_a_cap(world: World, ada: Somebody) -> None:
    plan = ada.asks("deploy h100 sxm")
    ada.presses(plan, "Approve")
    world.pass_time(5)

    (doc,) = world.store.query("instances", [("account", "==", "acme")])
    shown = text_of(plan.versions[0])
    assert f"Never above {float(doc.data['spec']['max_usd_per_hour']):.4f} USD/h" in shown


def test_an_offer_that_has_expired_rents_nothing(world: World, ada: Somebody) -> None:
    plan = ada.asks("deploy h100 sxm")
    world.pass_time(601, step_s=20)
    ada.presses(plan, "Approve")
    world.until(lambda: "expired" in text_of(plan.content))

    assert world.sim.contracts() == []


def test_hibernate_and_wake_end_to_end_each_edited_in_place(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)

    going_down = ada.asks("stop")
    world.until(lambda: "*hibernated*" in text_of(going_down.content))
    assert world.show(id).state is State.HIBERNATED
    assert world.sim.contracts() == []

    ada.presses(going_down, "Wake")
    world.until(lambda: "*running*" in text_of(going_down.content), within_s=600)
    assert world.show(id).state is State.RUNNING
    assert len(going_down.versions) >= 4


def test_destroy_asks_first_and_its_button_asks_again(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    question = ada.asks(f"destroy {id}")
    (button,) = buttons(question.content).values()

    assert button["confirm"]["confirm"]["text"] == "Destroy"
    assert world.show(id).state is State.RUNNING
    ada.presses(question, "Destroy")
    world.until(lambda: world.show(id).state is State.TERMINATED)
    world.until(lambda: "terminated" in text_of(question.content))
    assert world.show(id).snapshot


def test_an_instance_is_known_by_its_name_and_a_wrong_one_gets_a_suggestion(world: World, ada: Somebody) -> None:
    Api(world, another_admin(world)).post("/instances/provision", {"gpu": "H100 SXM", "name": "My Trainer"})

    assert "My Trainer" in text_of(ada.asks('show "my trainer"').content)
    assert "did you mean My Trainer" in text_of(ada.asks("show 'My Trainr'").content)


def ended(world: World, id: str, name: str = "") -> None:
    """An instance of long ago."""
    spec = Spec(gpu="H100 SXM")
    made = Instance(id=id, account="acme", name=name, spec=spec, at=world.now, created_at=world.now)
    over = made.to(Phase.ENDED, at=world.now).having(want=Want.GONE, ended_at=world.now, purged_at=world.now)
    world.store.create("instances", over.key, dump(over))


def test_an_instance_is_listed_however_many_have_ended(world: World, ada: Somebody) -> None:
    id = running(world)
    for n in range(60):
        ended(world, f"0{n:011d}")

    assert id in text_of(ada.asks("list").content)


def test_a_name_is_that_of_the_instance_that_lives(world: World, ada: Somebody) -> None:
    ended(world, "abc", name="trainer")
    id = running(world)
    kept = load(world.app, f"acme.{id}").instance
    world.store.commit([kept.becomes(kept.value.having(name="Trainer"))])

    ada.asks("hibernate trainer")

    world.until(lambda: world.show(id).state is State.HIBERNATED)


def test_the_market_and_an_unknown_gpu(world: World, ada: Somebody) -> None:
    assert "H100 SXM" in text_of(ada.asks("market h100 sxm").content)
    wrong = text_of(ada.asks("market H1OO").content)
    assert "o marketplace offers" in wrong
    assert "Did you mean" in wrong


def test_savings_tell_what_was_spent_and_the_hours_that_were_not(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    world.pass_time(600, step_s=5)
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    slept_from = world.now
    world.pass_time(3 * 3600, step_s=30)

    (row,) = Api(world, another_admin(world)).get("/savings?days=1").json["items"]
    assert row["id"] == id
    assert 2.9 < row["hibernated_hours"] < 3.1
    (span,) = row["hibernated"]
    assert abs((slept_from - _at(span["start"])).total_seconds()) < 180
    assert float(row["spent_usd"]) == pytest.approx(float(world.show(id).cost.metered_usd), rel=0.02)
    assert "3.0 h" in text_of(ada.asks("savings today").content)


def _at(text: str):
    from datetime import datetime

    return datetime.fromisoformat(text)


def test_snooze_is_a_lease_that_idleness_respects(world: World, ada: Somebody) -> None:
    id = running(world)
    world.pass_time(30)
    ada.asks("snooze 1h")
    world.writer(id).set_gpu(0)

    world.pass_time(3000, step_s=5)
    assert world.show(id).state is State.RUNNING
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=1500)


def test_a_lease_of_days_is_taken_and_given_back(world: World, ada: Somebody) -> None:
    id = running(world)
    taken = ada.asks(f"keep-alive {id} 2d")
    until = world.record(id).awake_until
    assert until
    assert timedelta(days=2) - timedelta(minutes=1) <= until - world.now <= timedelta(days=2)
    assert "is not hibernated for idleness before 2026-03-03" in text_of(taken.content)

    assert "has no lease" in text_of(ada.asks(f"keep-alive {id} off").content)
    assert world.record(id).awake_until is None


def test_why_tells_what_is_decided_and_what_led_here(world: World, ada: Somebody) -> None:
    id = running(world)
    world.pass_time(65)
    told = text_of(ada.asks(f"why {id}").content)

    assert "its GPU is used: up to 80 %" in told
    assert "default, after 180 s of quiet" in told
    assert "rented " in told


def test_who_may_only_read_asks_why_and_takes_no_lease(world: World) -> None:
    id = running(world)
    reader = Somebody(world).is_linked(role=Role.VIEWER)

    assert "Policy" in text_of(reader.asks(f"why {id}").content)
    assert "may not do this" in text_of(reader.types(f"keep-alive {id} 2h"))
    assert world.record(id).awake_until is None


# --- what happens by itself


def test_an_idle_gpu_is_announced_with_a_snooze_before_it_hibernates(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    world.pass_time(60)
    world.writer(id).set_gpu(0)
    world.until(lambda: any("*Idle*" in text_of(m.content) for m in ada.reads()), within_s=300)
    assert world.show(id).state is State.RUNNING

    warning = ada.reads()[-1]
    ada.presses(warning, "Snooze 60 min")
    world.pass_time(1200, step_s=5)

    assert world.show(id).state is State.RUNNING
    assert "not hibernated for idleness before" in text_of(warning.content)


def test_who_does_not_answer_the_warning_is_hibernated_and_told(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    world.pass_time(60)
    world.writer(id).set_gpu(0)
    world.until(lambda: any("*Hibernated*" in text_of(m.content) for m in ada.reads()), within_s=600)

    titles = [text_of(m.content) for m in ada.reads()]
    assert [sum(f"*{title}*" in text for text in titles) for title in ("Ready", "Idle", "Hibernated")] == [1, 1, 1]
    assert world.show(id).state is State.HIBERNATED


def test_what_a_function_without_slacks_secrets_does_is_told_too(world: World, ada: Somebody) -> None:
    without = {row.name for row in topology.FUNCTIONS if "slack" not in row.rights}
    told_by = world.app
    world.app = dataclasses.replace(told_by, chat=None)

    running(world)
    links = Api(world, another_admin(world)).get("/slack/links").json["items"]

    world.app = told_by
    world.until(lambda: any("Ready" in text_of(message.content) for message in ada.reads()), within_s=120)
    assert {"api", "heartbeat", "provision", "failover"} <= without
    assert [link["slack_user"] for link in links] == [ada.user]


def test_an_interruption_and_the_way_back_are_told(world: World, ada: Somebody) -> None:
    id = running(world)
    contract = world.sim.contract_of(world.record(id).writer or "")
    assert contract
    world.sim.lose(contract, world.now)
    world._carry_out()
    world.until(lambda: any("*Back*" in text_of(m.content) for m in ada.reads()), within_s=1500)

    told = " ".join(text_of(m.content) for m in ada.reads())
    assert "*Interrupted*" in told
