"""Why a machine is left alone, or not: other signs of life, the policies, keep-alive leases, and `why` for all."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from typer.testing import CliRunner

from common.cli import fleet, session
from common.domain.instance import Phase, State
from jobs import hibernate_idle
from tests.functions.conftest import Api
from tests.functions.test_cli import signed_in
from tests.functions.test_idle_stages import idle, story
from tests.functions.test_rest import problem
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import World

__all__ = ["signed_in"]
run = CliRunner()


def why(api: Api, id: str) -> dict:
    answer = api.get(f"/instances/{id}/why")
    assert answer.status_code == 200, answer.text
    return answer.json["idleness"]


def quiet(world: World, **spec: object) -> str:
    """Running, with work that no snapshot holds yet, and its GPU has just become quiet."""
    id = world.provision(**spec)
    world.until(lambda: world.show(id).state is State.RUNNING)
    write(world, id)
    world.writer(id).set_gpu(0)
    return id


# --- signs of life


@pytest.mark.parametrize(
    "sign", ["cpu", "disk", "network", "ssh", "terminal", "kernel", "compile", "keep_alive", "unknown"]
)
def test_any_other_sign_of_life_keeps_a_quiet_gpu_awake_and_why_names_it(world: World, admin: Api, sign: str) -> None:
    id = quiet(world)
    world.writer(id).signs = (sign,)
    world.pass_time(900)

    assert world.show(id).state is State.RUNNING
    told = why(admin, id)
    assert (told["act"], told["vetoes"], told["idle_since"]) == ("nothing", [sign], None)
    assert told["because"] == f"its GPU is quiet, but there are other signs of life: {sign}"

    world.writer(id).signs = ()
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=400)


def test_a_sign_within_the_window_restarts_it(world: World) -> None:
    id = quiet(world)
    world.pass_time(150)
    world.writer(id).signs = ("terminal",)
    world.pass_time(5)
    world.writer(id).signs = ()
    back_at = world.now
    world.until(lambda: world.record(id).phase is Phase.FREEZING, within_s=600)

    assert world.now - back_at >= timedelta(seconds=170)


def test_who_begins_between_the_report_and_the_freeze_is_not_put_to_sleep(world: World) -> None:
    id = idle(world)
    world.until(lambda: world.record(id).phase is Phase.FREEZING, within_s=400)
    assert not world.writer(id).writers.frozen  # the order has not arrived
    world.writer(id).signs = ("ssh",)
    world.writer(id).agent.next_sample_at = None
    writer = world.record(id).writer
    world.pass_time(90)

    assert (world.record(id).phase, world.record(id).writer) == (Phase.UP, writer)
    assert "in_use" in story(world, id)
    assert not world.writer(id).writers.frozen


def test_a_hibernation_that_the_user_asks_for_heeds_no_sign(world: World) -> None:
    id = running(world)
    write(world, id)
    world.writer(id).signs = ("cpu", "ssh")
    ask(world, id, "hibernate")

    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=400)


# --- policies


def test_adaptive_waits_as_long_as_its_wakes_have_taken(world: World, admin: Api) -> None:
    world.sim.slow_boots(400)
    id = quiet(world, idle_policy="adaptive")
    assert why(admin, id)["window_s"] == 180  # no wake is measured yet
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    asked_at = world.now
    admin.post(f"/instances/{id}/wake")
    world.until(lambda: world.show(id).state is State.RUNNING)
    took_s = (world.now - asked_at).total_seconds()

    told = why(admin, id)
    assert told["wake_cost_s"] == pytest.approx(took_s, abs=15)
    assert told["window_s"] == told["wake_cost_s"] > 400
    world.writer(id).set_gpu(0)
    idle_from = world.now
    world.until(lambda: world.record(id).phase is Phase.FREEZING, within_s=900)
    assert (world.now - idle_from).total_seconds() >= told["window_s"]


def test_shadow_notes_once_what_it_would_do_and_does_nothing(world: World, admin: Api) -> None:
    id = quiet(world, idle_policy="shadow")
    world.pass_time(1200, step_s=2)

    assert world.show(id).state is State.RUNNING
    kinds = story(world, id)
    assert kinds.count("shadow") == 1
    assert "idle" not in kinds  # nobody is warned of what will not happen
    assert [event for event, _ in world.log].count("would_hibernate") == 1
    told = why(admin, id)
    assert told["policy"] == "shadow"
    assert told["because"].startswith("would have been hibernated at")

    world.writer(id).set_gpu(90)
    world.pass_time(120)
    world.writer(id).set_gpu(0)
    world.pass_time(400, step_s=2)
    assert story(world, id).count("shadow") == 2


def test_a_policy_that_does_not_exist_is_refused(admin: Api) -> None:
    problem(admin.post("/instances/plan", {"gpu": "RTX 4090", "idle_policy": "clairvoyant"}), 422, "invalid_input")


# --- why


def test_why_tells_what_will_happen_and_when(world: World, admin: Api) -> None:
    id = quiet(world)
    world.pass_time(70)
    told = why(admin, id)

    since, warns, ends = (datetime.fromisoformat(told[name]) for name in ("idle_since", "warns_at", "hibernates_at"))
    assert (told["act"], told["policy"], told["window_s"]) == ("nothing", "default", 180)
    assert (warns - since, ends - since) == (timedelta(seconds=120), timedelta(seconds=180))
    world.until(lambda: world.record(id).phase is Phase.FREEZING, within_s=300)
    assert ends <= world.now <= ends + timedelta(seconds=60)  # the job's next minute


def test_why_tells_a_busy_gpu_a_silent_machine_and_one_that_does_not_run(world: World, admin: Api) -> None:
    id = running(world)
    world.pass_time(65)
    assert why(admin, id)["because"] == "its GPU is used: up to 80 % since the report before"

    world.writer(id).set_gpu(0)
    world.pass_time(65)
    world.writer(id).cut = True
    world.now += timedelta(seconds=100)
    assert "unknown is never idle" in why(admin, id)["because"]

    world.writer(id).cut = False
    write(world, id)
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    assert why(admin, id)["because"] == "it does not run, or is not meant to"


def test_why_tells_a_gpu_that_cannot_be_looked_at(world: World, admin: Api) -> None:
    id = quiet(world)
    world.writer(id).gpu.unlink()
    world.pass_time(300)

    assert world.show(id).state is State.RUNNING
    assert why(admin, id)["because"] == "the use of its GPU is not known, and unknown is never idle"


def test_why_of_another_tenants_instance_is_not_found(world: World, admin: Api) -> None:
    problem(admin.get("/instances/nosuch/why"), 404, "not_found")


# --- keep-alive


def test_a_keep_alive_holds_until_it_is_over_and_ends_early_when_asked(world: World, admin: Api) -> None:
    id = quiet(world)
    first = admin.post(f"/instances/{id}/keep-alive", {"minutes": 30})
    world.pass_time(1500, step_s=5)
    assert first.status_code == 200
    assert world.show(id).state is State.RUNNING
    assert datetime.fromisoformat(why(admin, id)["awake_until"]) == world.show(id).awake_until

    ended = admin.post(f"/instances/{id}/keep-alive", {"minutes": 0})
    assert ended.json["awake_until"] is None
    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=400)
    assert story(world, id).count("keep_alive") == 2


def test_a_keep_alive_is_for_what_runs_and_has_bounds(world: World, admin: Api) -> None:
    id = running(world)

    problem(admin.post(f"/instances/{id}/keep-alive", {"minutes": -1}), 422, "invalid_input")
    problem(admin.post(f"/instances/{id}/keep-alive", {"minutes": 7 * 24 * 60 + 1}), 422, "invalid_input")
    write(world, id)
    ask(world, id, "hibernate")
    problem(admin.post(f"/instances/{id}/keep-alive", {"minutes": 60}), 409, "illegal_move")


def test_the_command_line_keeps_alive_and_says_why(signed_in: World) -> None:
    id = quiet(signed_in)
    signed_in.pass_time(70)

    kept = run.invoke(fleet.machines, ["keep-alive", id, "--for", "2h"])
    told = run.invoke(fleet.machines, ["why", id], env={"COLUMNS": "200"})
    as_json = json.loads(run.invoke(fleet.instances, ["why", id, "--json"]).stdout)
    ended = run.invoke(fleet.machines, ["keep-alive", id, "--end"])
    wrong = run.invoke(fleet.machines, ["keep-alive", id, "--for", "for ever"])

    assert "is kept awake until 2026-03-01T14:" in kept.stdout
    assert "policy default: hibernated after 180 s of quiet" in told.stdout
    assert "awake until: 2026-03-01T14:" in told.stdout
    assert "kept awake until" in told.stdout
    assert (as_json["idleness"]["act"], as_json["items"][-1]["kind"]) == ("nothing", "keep_alive")
    assert f"{id} has no lease" in ended.stdout
    assert wrong.exit_code == session.USAGE


def test_the_job_counts_what_it_noted(world: World) -> None:
    id = quiet(world, idle_policy="shadow")
    world.next_job_at = world.now.replace(year=2027)
    world.pass_time(200)

    assert hibernate_idle.run(world.app)["shadow"] == [id]
    assert hibernate_idle.run(world.app)["shadow"] == []
