"""`/gpu` from the keystroke to the machine, over the real function, the real adapter and a simulated workspace."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest

from common.domain.account import Role
from common.domain.instance import State
from common.ports import Chat, Data
from common.web import slack_outbox
from common.workflows import outbox
from infra.demo.slack import CHANNEL, buttons
from tests.functions.conftest import Api, key_for
from tests.functions.slack_people import Somebody, text_of
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import World


@pytest.fixture
def ada(world: World) -> Somebody:
    """An admin of acme."""
    return Somebody(world).is_linked()


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
    admin = Api(world, _another_admin(world))
    (adas,) = [item for item in admin.get("/slack/links").json["items"] if item["slack_user"] == ada.user]

    assert admin.call("DELETE", f"/api/v1/slack/links/{adas['id']}").status_code == 204
    (bobs,) = [user for user in admin.get("/users").json["items"] if user["email"] == "member@acme.example"]
    assert admin.call("DELETE", f"/api/v1/users/{bobs['id']}").status_code == 204

    for person in (ada, bob):
        assert "dumont slack link" in text_of(person.types("list"))


def _another_admin(world: World) -> str:
    from common import auth
    from common.domain.account import Caller
    from common.workflows import users

    user = users.add(
        world.app, account="acme", email="root@acme.example", password="12345678", role=Role.ADMIN, now=world.now
    )
    caller = Caller(account="acme", user_id=user.id, role=Role.ADMIN)
    record, key = auth.new_api_key(ids=world.app.ids, caller=caller, name="t", role=Role.ADMIN, now=world.now)
    users.save_api_key(world.store, record)
    return key


def test_a_viewer_may_look_and_not_touch(world: World) -> None:
    id = running(world)
    viewer = Somebody(world).is_linked(role=Role.VIEWER)

    assert id in text_of(viewer.asks("list").content)
    assert "role viewer may not" in text_of(viewer.types(f"hibernate {id}"))
    message = viewer.asks(f"show {id}")
    assert "role viewer may not" in text_of(viewer.presses(message, "Hibernate"))
    world.pass_time(60)
    assert world.show(id).state is State.RUNNING


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
    (instance,) = Api(world, _another_admin(world)).get("/instances").json["items"]
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
    Api(world, _another_admin(world)).post("/instances/provision", {"gpu": "H100 SXM", "name": "My Trainer"})

    assert "My Trainer" in text_of(ada.asks('show "my trainer"').content)
    assert "did you mean My Trainer" in text_of(ada.asks("show 'My Trainr'").content)


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

    (row,) = Api(world, _another_admin(world)).get("/savings?days=1").json["items"]
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


def test_an_interruption_and_the_way_back_are_told(world: World, ada: Somebody) -> None:
    id = running(world)
    contract = world.sim.contract_of(world.record(id).writer or "")
    assert contract
    world.sim.lose(contract, world.now)
    world._carry_out()
    world.until(lambda: any("*Back*" in text_of(m.content) for m in ada.reads()), within_s=1500)

    told = " ".join(text_of(m.content) for m in ada.reads())
    assert "*Interrupted*" in told


# --- delivery


def test_everything_delivered_twice_acts_once(world: World, ada: Somebody) -> None:
    world.slack_sim.twice = True
    plan = ada.asks("deploy h100 sxm")
    ada.presses(plan, "Approve")
    world.until(lambda: "*running*" in text_of(plan.content), within_s=600)

    assert len(world.store.query("instances", [("account", "==", "acme")])) == 1
    assert set(ada.statuses) == {200}


def test_a_press_that_is_signed_anew_acts_once_even_much_later(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    message = ada.asks(f"show {id}")
    ada.presses(message, "Hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    ask(world, id, "wake")
    world.until(lambda: world.show(id).state is State.RUNNING, within_s=600)

    message.versions.append(message.versions[0])  # an old copy of the message, in another window
    answer = ada.presses(message, "Hibernate")
    world.pass_time(120, step_s=5)

    assert "taken already" in text_of(answer)
    assert world.show(id).state is State.RUNNING


def test_when_the_response_url_is_used_up_the_answer_comes_as_a_direct_message(world: World, ada: Somebody) -> None:
    ada.types("list")
    for url in world.slack_sim.response_urls.values():
        url.uses = 5
    world.until(lambda: bool(ada.reads()))

    assert ada.reads()[-1].channel == f"D{ada.user[1:]}"
    assert "no instances" in text_of(ada.reads()[-1].content)


def test_progress_goes_on_in_a_direct_message_when_the_response_url_ends_on_the_way(
    world: World, ada: Somebody
) -> None:
    id = running(world)
    write(world, id)
    ada.asks(f"hibernate {id}")
    for url in world.slack_sim.response_urls.values():
        url.uses = 5
    world.until(lambda: any("*hibernated*" in text_of(m.content) for m in ada.reads()))

    (direct,) = [m for m in ada.reads() if not m.response_url and "hibernate `" in text_of(m.versions[0])]
    assert "*hibernated*" in text_of(direct.content)
    assert world.show(id).state is State.HIBERNATED


def test_too_many_messages_wait_as_long_as_slack_says_and_none_is_lost(world: World, ada: Somebody) -> None:
    for number in range(5):
        body = {"text": f"number {number}", "instance_id": "i1", "name": ""}
        world.store.commit(outbox.tell(world.app, "acme", outbox.Kind.LOST, body, world.now))
    world.app.nudge_outbox()
    world.pass_time(30)

    told = [text_of(m.content) for m in ada.reads()]
    assert all(sum(f"number {number}" in text for text in told) == 1 for number in range(5))
    assert world.store.query("outbox", [("account", "==", "acme"), ("state", "==", "dead")]) == []


def test_the_errand_of_somebody_who_was_unlinked_meanwhile_does_nothing(world: World, ada: Somebody) -> None:
    id = running(world)
    ada.types(f"hibernate {id}")
    doc = world.store.get("slack_links", f"T0DEMO0001.{ada.user}")
    assert doc
    world.store.delete(doc)
    world.pass_time(60)

    assert world.show(id).state is State.RUNNING
    assert "dumont slack link" in text_of(ada.reads()[-1].content)


def test_an_errand_that_is_carried_out_twice_begins_one_operation(world: World, ada: Somebody) -> None:
    """A kill between the effect and its record: the next run finds the message as it was."""
    id = running(world)
    write(world, id)
    ada.types(f"hibernate {id}")
    message = _errand(world)

    for _ in range(2):
        slack_outbox.attempt(world.app, message)

    assert len(world.store.query("operations", [("instance_key", "==", f"acme.{id}")])) == 1


def test_what_was_asked_is_among_the_accounts_messages_without_its_content(world: World, ada: Somebody) -> None:
    ada.asks("list")
    admin = Api(world, _another_admin(world))

    (shown,) = admin.get("/messages?state=done").json["items"]
    assert (shown["kind"], shown["target"]) == ("slack.errand", f"slack:T0DEMO0001.{ada.user}")
    assert ada.url not in text_of(shown)


def test_what_a_person_reads_holds_no_secret(world: World, ada: Somebody) -> None:
    running(world)
    for text in ("list", "show", "market h100 sxm", "savings", "deploy h100 sxm"):
        ada.asks(text)
    said = json.dumps([message.versions for message in world.slack_sim.messages])
    settings = world.app.settings
    secrets = (
        settings.jwt_secret,
        settings.storage_application_key,
        "sim-key",
        "xoxb-sim",
        settings.slack_signing_secret,
    )

    assert not any(secret in said for secret in secrets if secret)


def _errand(world: World) -> outbox.Message:
    """The one that waits to be carried out."""
    docs = world.store.query("outbox", [("account", "==", "acme"), ("state", "==", "waiting")])
    (message,) = [outbox.Message.model_validate(d.data) for d in docs if d.data["kind"] == "slack.errand"]
    return message


# --- what the simulation found


class Held:
    """Slack, behind a call that stands still while others go on."""

    def __init__(self, chat: Chat, meanwhile: Callable[[], object]) -> None:
        self.post, self.update, self._respond, self._meanwhile = chat.post, chat.update, chat.respond, meanwhile

    def respond(self, response_url: str, message: Data) -> None:
        self._meanwhile()
        self._respond(response_url, message)


def test_whoever_stood_still_does_not_have_the_last_word(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    going_down = ada.asks(f"hibernate {id}")
    usual = world.app

    def told() -> list[bool]:
        return ["*hibernated*" in text_of(version) for version in going_down.versions]

    def others_go_on() -> None:
        world.app = usual
        world.until(lambda: told()[-1])

    world.app = dataclasses.replace(usual, chat=Held(world.chat, others_go_on))
    world.until(lambda: True in told())
    before = told().index(True)
    assert told()[before : before + 2] == [True, False]

    world.until(lambda: told()[-1], within_s=120)


def test_a_plan_that_is_shown_twice_at_two_prices_is_approved_once(world: World, ada: Somebody) -> None:
    """Its answer was lost, so it was made again."""
    ada.types("deploy h100 sxm")
    message = _errand(world)
    slack_outbox.attempt(world.app, message)
    for machine in world.sim.machines("H100 SXM"):
        world.sim.tamper(machine["machine_id"], dph_base=f"{Decimal(machine['dph_base']) * Decimal('0.95'):.4f}")
    world.now += timedelta(minutes=2)
    slack_outbox.attempt(world.app, message)
    plans = [m for m in ada.reads() if buttons(m.content)]
    shown = {text_of(plan.content) for plan in plans}

    assert len(plans) == len(shown) == 2
    for plan in plans:
        ada.presses(plan, "Approve")
    world.pass_time(30)
    assert len(world.store.query("instances", [("account", "==", "acme")])) == 1


def test_who_presses_another_accounts_button_takes_nothing_from_its_owner(world: World, ada: Somebody) -> None:
    plan = ada.asks("deploy h100 sxm")
    eve = Somebody(world, "U0EVE00001").is_linked("evil")
    eve.presses(plan, "Approve")
    ada.presses(plan, "Approve")
    world.pass_time(30)

    assert len(world.store.query("instances", [("account", "==", "acme")])) == 1


def test_what_could_not_be_begun_in_time_is_never_begun(world: World, ada: Somebody) -> None:
    id = running(world)
    ada.types(f"snooze {id} 2h")
    message = _errand(world)

    world.now += slack_outbox.BEGUN_WITHIN + timedelta(seconds=1)
    for _ in range(2):
        assert slack_outbox.attempt(world.app, message).state == "done"

    assert world.record(id).awake_until is None
    assert all("could not be done in time" in text_of(m.content) for m in ada.reads())
    late = message.model_copy(update={"created_at": world.now})  # an attempt that read the message much earlier
    slack_outbox.attempt(world.app, late)
    assert world.record(id).awake_until is None


def test_what_was_begun_in_time_is_told_however_late(world: World, ada: Somebody) -> None:
    id = running(world)
    ada.types(f"snooze {id} 2h")
    message = _errand(world)
    slack_outbox.attempt(world.app, message)
    until = world.record(id).awake_until
    assert until

    world.now += slack_outbox.BEGUN_WITHIN + timedelta(seconds=1)
    slack_outbox.attempt(world.app, message)

    assert world.record(id).awake_until == until
    assert "is not hibernated for idleness" in text_of(ada.reads()[-1].content)


def test_a_hibernation_that_was_called_off_is_told_as_that_and_followed_no_longer(world: World, ada: Somebody) -> None:
    id = running(world)
    write(world, id)
    going_down = ada.asks(f"hibernate {id}")
    ask(world, id, "wake")

    world.until(lambda: "called off: it is wanted up now" in text_of(going_down.content), within_s=60)
    world.until(lambda: not world.store.query("outbox", [("next_at", "<=", world.now + timedelta(hours=1))]), 60)
