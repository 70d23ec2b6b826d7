"""What is delivered twice, late, or to somebody else: each errand is carried out once and each answer arrives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

from common.domain.instance import State
from common.ports import Chat, Data
from common.web import slack_outbox
from common.workflows import outbox
from infra.demo.slack import buttons
from tests.functions.conftest import Api
from tests.functions.slack_people import Somebody, ada, another_admin, errand, text_of
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import World

__all__ = ["ada"]


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
    message = errand(world)

    for _ in range(2):
        slack_outbox.attempt(world.app, message)

    assert len(world.store.query("operations", [("instance_key", "==", f"acme.{id}")])) == 1


def test_what_was_asked_is_among_the_accounts_messages_without_its_content(world: World, ada: Somebody) -> None:
    ada.asks("list")
    admin = Api(world, another_admin(world))

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
    message = errand(world)
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
    message = errand(world)

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
    message = errand(world)
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
