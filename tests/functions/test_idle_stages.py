"""Two stages of idleness: told first, then frozen; a lease holds it off; a sign of life calls it off to the last."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from common.cli import fleet, session
from common.cli import slack as cli
from common.domain.instance import Phase, State
from common.domain.slack import Person
from common.records import load
from common.workflows import hibernate, lifecycle, slack
from jobs import hibernate_idle
from tests.functions.conftest import Api
from tests.functions.test_cli import signed_in
from tests.functions.test_rest import problem
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import ACCOUNT, World

__all__ = ["signed_in"]
run = CliRunner()


def story(world: World, id: str) -> list[str]:
    docs = world.store.query("events", [("instance_key", "==", f"{ACCOUNT}.{id}")], order_by="at", newest_first=True)
    return [doc.data["kind"] for doc in reversed(docs)]


def idle(world: World) -> str:
    id = running(world)
    write(world, id)
    world.pass_time(60)
    world.writer(id).set_gpu(0)
    return id


def test_nobody_is_hibernated_who_was_not_warned(world: World) -> None:
    id = idle(world)
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=400)

    kinds = story(world, id)
    assert kinds.count("idle") == 1
    assert kinds.index("idle") < kinds.index("hibernate")


def test_a_job_that_comes_late_warns_first_and_hibernates_the_next_time(world: World) -> None:
    id = idle(world)
    world.next_job_at = world.now.replace(year=2027)
    world.pass_time(1000)  # Cloud Scheduler was away

    first = hibernate_idle.run(world.app)
    again = hibernate_idle.run(world.app)
    world.pass_time(31)
    last = hibernate_idle.run(world.app)

    assert (first["warned"], first["hibernated"]) == ([id], [])
    assert (again["warned"], again["hibernated"]) == ([], [])
    assert last["hibernated"] == [id]


def test_work_after_the_warning_ends_it_and_the_next_idleness_is_warned_of_again(world: World) -> None:
    id = idle(world)
    world.until(lambda: "idle" in story(world, id), within_s=300)
    world.writer(id).set_gpu(90)
    world.pass_time(300)
    assert world.show(id).state is State.RUNNING
    world.writer(id).set_gpu(0)
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=500)

    assert story(world, id).count("idle") == 2


def test_a_snooze_while_it_freezes_brings_it_back(world: World, admin: Api) -> None:
    id = idle(world)
    world.until(lambda: world.record(id).phase is Phase.FREEZING, within_s=400)

    assert admin.post(f"/instances/{id}/snooze", {"minutes": 30}).status_code == 200
    world.pass_time(600, step_s=5)

    assert world.show(id).state is State.RUNNING
    assert not world.writer(id).writers.frozen


def test_a_sign_of_life_while_it_freezes_calls_it_off_and_no_machine_is_lost(world: World) -> None:
    id = idle(world)
    world.until(lambda: world.record(id).phase is Phase.FREEZING, within_s=400)
    label = world.record(id).writer or ""
    doc = world.store.get("hosts", label)
    assert doc
    world.store.put("hosts", label, {**doc.data, "vetoes": ["ssh"], "last_seen_at": world.now})
    lifecycle.advance(world.app, f"{ACCOUNT}.{id}")

    record = world.record(id)
    assert (record.phase, record.writer) == (Phase.UP, label)
    assert "not idle after all: ssh" in [e.text for e in view_events(world, id)]


def view_events(world: World, id: str):
    from common.views import instances as view

    return view.events(world.app, ACCOUNT, id)


def test_what_the_user_asked_for_is_not_called_off_by_a_sign_of_life(world: World) -> None:
    id = running(world)
    write(world, id)
    ask(world, id, "hibernate")
    world.until(lambda: world.record(id).phase is Phase.FREEZING)
    loaded = load(world.app, f"{ACCOUNT}.{id}")

    assert hibernate.look_again(world.app, loaded, world.now) is False


def test_a_snooze_is_for_what_runs_and_has_bounds(world: World, admin: Api) -> None:
    id = running(world)

    problem(admin.post(f"/instances/{id}/snooze", {"minutes": 0}), 422, "invalid_input")
    problem(admin.post(f"/instances/{id}/snooze", {"minutes": 1441}), 422, "invalid_input")
    first = admin.post(f"/instances/{id}/snooze", {"minutes": 60}, Idempotency_Key="k")
    world.pass_time(60)
    again = admin.post(f"/instances/{id}/snooze", {"minutes": 60}, Idempotency_Key="k")
    assert first.json["awake_until"] == again.json["awake_until"]
    ask(world, id, "hibernate")
    problem(admin.post(f"/instances/{id}/snooze", {"minutes": 60}), 409, "illegal_move")


def test_the_command_line_snoozes_links_and_tells_savings(signed_in: World) -> None:
    id = running(signed_in)
    code = slack.new_code(signed_in.app, Person(team="T1", user="U1", name="ada"), signed_in.now)

    snoozed = run.invoke(fleet.instances, ["snooze", id, "--minutes", "90"])
    linked = run.invoke(cli.slack, ["link", code])
    listed = json.loads(run.invoke(cli.slack, ["list", "--json"]).stdout)["items"]
    used = run.invoke(cli.slack, ["link", code])
    unlinked = run.invoke(cli.slack, ["unlink", "T1.U1"])

    assert "is kept awake until" in snoozed.stdout
    assert "you are ada (U1 in T1) in Slack" in linked.stdout
    assert [item["id"] for item in listed] == ["T1.U1"]
    assert used.exit_code == session.USAGE
    assert unlinked.stdout == "unlinked T1.U1\n"
