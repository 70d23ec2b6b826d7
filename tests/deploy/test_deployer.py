"""Plan, apply and destroy against a simulated Google."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.functions_v2", reason="the deployer is not installed: make deployer")

from common import bootstrap
from common.config import Settings
from common.topology import FUNCTIONS, RIGHTS, SCHEDULES, Function
from infra.demo.gcp.code import DEPLOYING, ENABLED, PAUSED
from infra.demo.gcp.project import has_role
from infra.demo.gcp.sim import Refused, Trouble
from infra.deploy import make
from infra.deploy.archive import Archive
from infra.deploy.google import GoogleRefused, GoogleSilent
from infra.deploy.product import DELETED_AT_ONCE
from infra.deploy.project import DRAWN
from infra.deploy.resource import Failed, Step
from infra.deploy.wanted import wanted
from tests.deploy.cloud import ENV, PROJECT, START, Cloud, Killed, Served, built, cloud, new_cloud, served

__all__ = ["built", "cloud", "served"]


def test_apply_on_an_empty_project_makes_everything_and_a_second_one_writes_nothing(cloud: Cloud) -> None:
    planned = cloud.plan()
    assert not cloud.sim.writes
    assert {step.act for step in planned} == {"create"}

    made = cloud.apply()

    assert [(step.kind, step.name) for step in made] == [(step.kind, step.name) for step in planned]
    assert {step.act for step in cloud.plan()} == {"keep"}
    cloud.sim.calls.clear()
    writes = cloud.objects.writes
    assert cloud.apply() == []
    assert cloud.sim.writes == []
    assert cloud.objects.writes == writes


@pytest.mark.timeout(900)
def test_killed_before_every_single_call_an_apply_goes_on_to_the_same_end(
    served: Served, built: Archive, tmp_path: Path
) -> None:
    """From the world as each call found it, a new process goes on and knows only what Google says.

    The world is remembered before each call of one apply, and put back: a kill leaves exactly that behind.
    """
    cloud = new_cloud(served, built, tmp_path, operation_s=OPERATION_S)
    worlds: list[Callable[[], None]] = []
    cloud.apply(before=lambda: worlds.append(cloud.kept()))
    end = cloud.state()
    assert len(worlds) > 100

    for killed_before, put_back in enumerate(worlds, start=1):
        put_back()
        cloud.apply()

        assert cloud.state() == end, f"killed before call {killed_before}"


def test_a_world_that_is_put_back_is_what_a_kill_leaves_behind(served: Served, built: Archive, tmp_path: Path) -> None:
    """Both ways to stand before one call: so it may be put back instead of killed anew."""
    whole = new_cloud(served, built, _folder(tmp_path, "whole"), operation_s=OPERATION_S)
    worlds: list[Callable[[], None]] = []
    whole.apply(before=lambda: worlds.append(whole.kept()))

    for kill_at in (1, len(worlds) // 2, len(worlds)):
        killed = new_cloud(served, built, _folder(tmp_path, kill_at), operation_s=OPERATION_S)
        with pytest.raises(Killed):
            killed.apply(kill_at)
        worlds[kill_at - 1]()

        assert whole.state() == killed.state()
        assert whole.subscription() == killed.subscription()
        killed.store.close()


def test_killed_while_functions_are_built_an_apply_waits_for_google_before_it_changes_them(cloud: Cloud) -> None:
    whole = next(n for n in range(1, 400) if _is_building(cloud, n))
    assert whole
    cloud.having(functions=[replace(row, timeout_s=90) if row.public else row for row in FUNCTIONS])

    cloud.apply()

    assert {step.act for step in cloud.plan()} == {"keep"}


def _is_building(cloud: Cloud, kill_at: int) -> bool:
    """Die one call later than before, until Google is at work on a function."""
    with contextlib.suppress(Killed):
        cloud.apply(kill_at % 60 + 1)
    return any(row["state"] == DEPLOYING for row in cloud.sim.table("functions").values())


def test_one_row_that_changed_is_exactly_one_change(cloud: Cloud) -> None:
    cloud.apply()
    rows = [replace(row, memory_mb=1024) if row.name == "heartbeat" else row for row in FUNCTIONS]
    cloud.having(functions=rows)

    [planned] = [step for step in cloud.plan() if step.act != "keep"]

    assert (planned.act, planned.kind, planned.name) == ("change", "function", "heartbeat")
    assert planned.differences == ["memory: 512Mi -> 1024Mi"]
    cloud.sim.calls.clear()
    assert [(step.act, step.name) for step in cloud.apply()] == [("change", "heartbeat")]
    assert [method for method, _ in cloud.sim.writes] == ["PATCH"]


def test_a_row_that_is_gone_takes_its_function_schedule_and_account_along(cloud: Cloud) -> None:
    cloud.apply()
    cloud.having(
        functions=[row for row in FUNCTIONS if row.name != "refill_warm_pool"],
        schedules=[row for row in SCHEDULES if row.name != "refill_warm_pool"],
    )

    done = cloud.apply()

    deleted = [(step.kind, step.name) for step in done if step.act == "delete"]
    assert deleted == [
        ("schedule", "dumont-refill-warm-pool"),
        ("function", "refill-warm-pool"),
        ("account", "dumont-refill-warm-pool"),
    ]
    assert {step.kind for step in done if step.act == "change"} == {"role", "reader"}
    assert {step.act for step in cloud.plan()} == {"keep"}


def test_what_somebody_changed_by_hand_is_put_right(cloud: Cloud) -> None:
    cloud.apply()
    cloud.sim.table("jobs")["dumont-reconcile"]["state"] = PAUSED
    cloud.sim.table("functions")["api"]["serviceConfig"]["environmentVariables"]["DUMONT_IDLE_FOR_S"] = "9"
    stranger = {"role": "roles/viewer", "members": ["user:someone@example.com"]}
    cloud.sim.table("policies")["project"]["bindings"].append(stranger)

    done = cloud.apply()

    assert [(step.kind, step.name) for step in done] == [("function", "api"), ("schedule", "dumont-reconcile")]
    assert done[0].differences == ["env.DUMONT_IDLE_FOR_S: 9 -> 180"]
    assert cloud.sim.table("jobs")["dumont-reconcile"]["state"] == ENABLED
    assert stranger in cloud.sim.table("policies")["project"]["bindings"]


def test_a_new_value_of_a_secret_is_a_new_revision_of_the_functions_that_read_it(cloud: Cloud) -> None:
    cloud.apply()
    cloud.having(env={**ENV, "B2_APPLICATION_KEY": "another"})

    done = cloud.apply()

    assert (done[0].kind, done[0].name) == ("secret", "B2_APPLICATION_KEY")
    readers = {word for word, right in RIGHTS.items() if "{STORAGE}_APPLICATION_KEY" in right.secrets}
    assert {step.name for step in done[1:]} == {row.service for row in FUNCTIONS if readers & set(row.rights)}
    assert done[1].differences == ["secrets.B2_APPLICATION_KEY: 1 -> 2"]


def test_no_secret_is_shown_in_a_plan(cloud: Cloud) -> None:
    steps = [*cloud.plan(), *cloud.apply(), *cloud.plan()]

    shown = " ".join(f"{step} {step.differences}" for step in steps)
    assert not [value for value in cloud.parts.secret_values.values() if value in shown]


def test_a_secret_that_is_not_given_again_keeps_its_value(cloud: Cloud) -> None:
    cloud.having(env={**ENV, "TENSORDOCK_API_KEY": "dock-key"})
    cloud.apply()
    drawn = cloud.sim.table("secrets")["JWT_SECRET"]["versions"]
    cloud.having(env=ENV)

    assert cloud.apply() == []
    assert cloud.sim.table("secrets")["TENSORDOCK_API_KEY"]["versions"] == ["dock-key"]
    assert cloud.sim.table("secrets")["JWT_SECRET"]["versions"] == drawn
    assert len(drawn[0]) == 64


def test_the_secret_before_is_kept_for_the_machines_that_hold_what_it_signed(cloud: Cloud) -> None:
    cloud.apply()
    secrets, [drawn] = cloud.sim.table("secrets"), cloud.sim.table("secrets")["JWT_SECRET"]["versions"]
    cloud.having(env={**ENV, "JWT_SECRET": "another secret than the first"})

    cloud.apply()

    assert secrets["JWT_SECRET"]["versions"] == [drawn, "another secret than the first"]
    assert secrets["JWT_SECRET_BEFORE"]["versions"] == [drawn]
    for row in FUNCTIONS:
        found = cloud.deployer().look()["function"][row.service].spec["secrets"]
        assert (found["JWT_SECRET"], found["JWT_SECRET_BEFORE"]) == ("2", "1")
    assert {step.act for step in cloud.plan()} == {"keep"}


@pytest.mark.parametrize(
    ("method", "path", "refusal"),
    [
        ("POST", "/functions$", Refused(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric 'Functions'")),
        ("POST", "/functions$", Refused(503, "UNAVAILABLE", "The service is currently unavailable.")),
        ("POST", "/jobs$", Refused(403, "PERMISSION_DENIED", "cloudscheduler.jobs.create is missing")),
        ("POST", "/secrets$", Refused(429, "RESOURCE_EXHAUSTED", "Quota exceeded")),
        ("PATCH", "/fields/", Refused(500, "INTERNAL", "Internal error")),
        ("POST", "/databases$", Refused(503, "UNAVAILABLE", "try again")),
    ],
)
def test_a_refusal_in_the_middle_stops_with_its_sentence_and_the_next_apply_goes_on(
    cloud: Cloud, method: str, path: str, refusal: Refused
) -> None:
    cloud.sim.trouble.append(Trouble(method, path, refusal))

    with pytest.raises((GoogleRefused, GoogleSilent), match=re.escape(str(refusal))):
        cloud.apply()
    cloud.apply()

    assert {step.act for step in cloud.plan()} == {"keep"}


def test_reads_are_asked_again_while_google_does_not_answer(cloud: Cloud) -> None:
    cloud.apply()
    cloud.sim.trouble.append(Trouble("GET", "/databases/dumont$", Refused(503, "UNAVAILABLE", "later"), times=3))

    assert cloud.apply() == []


def test_a_failed_build_is_told_and_tried_anew(cloud: Cloud) -> None:
    """Partial failure: the function is there, and does not work."""
    cloud.apply()
    cloud.having(functions=[replace(row, timeout_s=90) if row.name == "api" else row for row in FUNCTIONS])
    cloud.sim.table("knobs")["builds_fail"] = "the build ran out of memory"

    with pytest.raises(Failed, match="the build ran out of memory"):
        cloud.apply()
    cloud.sim.table("knobs").clear()
    [step] = [step for step in cloud.plan() if step.act != "keep"]
    assert step.differences == ["failed before: the build ran out of memory"]
    cloud.apply()

    assert {step.act for step in cloud.plan()} == {"keep"}


def test_an_account_that_only_begins_like_ours_keeps_its_roles_and_stays(cloud: Cloud) -> None:
    email, role = f"dumont-deployer@{PROJECT}.iam.gserviceaccount.com", "roles/datastore.user"
    mine = {"role": "roles/owner", "members": [f"serviceAccount:{email}"]}
    theirs = {"role": role, "members": [f"serviceAccount:{email}"]}
    cloud.sim.table("accounts")[email] = {"email": email, "displayName": "deploys Dumont", "made": START - timedelta(1)}
    cloud.sim.table("policies")["project"] = {"version": 1, "etag": "0", "bindings": [mine, theirs]}

    assert not [step for step in cloud.apply() if step.act == "delete"]
    assert {step.act for step in cloud.plan()} == {"keep"}
    assert has_role(cloud.sim, "project", role, email)
    cloud.destroy(with_data=True)

    assert [*cloud.sim.table("accounts")] == [email]
    assert cloud.sim.table("policies")["project"]["bindings"] == [mine, theirs]


def test_an_account_of_ours_that_somebody_renamed_is_put_right(cloud: Cloud) -> None:
    cloud.apply()
    account = cloud.sim.table("accounts")[f"dumont-api@{PROJECT}.iam.gserviceaccount.com"]
    account["displayName"] = "answers the API"

    cloud.apply()

    assert account["displayName"] == "Dumont function api"
    assert {step.act for step in cloud.plan()} == {"keep"}


def test_a_strangers_function_under_our_name_is_not_touched(cloud: Cloud) -> None:
    cloud.sim.table("functions")["api"] = stranger = {"name": "x/functions/api", "labels": {}, "state": 1}

    with pytest.raises(Failed, match=r"api exists in .* and is not Dumont's"):
        cloud.apply()

    assert cloud.sim.table("functions")["api"] is stranger


def test_a_platform_without_the_boost_by_default_gets_it(cloud: Cloud) -> None:
    cloud.sim.table("knobs")["cpu_boost"] = False

    done = cloud.apply()

    assert [step.act for step in done if step.kind == "service"] == ["change"] * len(FUNCTIONS)
    assert {step.act for step in cloud.plan()} == {"keep"}


def test_only_the_public_functions_may_be_called_by_everybody(cloud: Cloud) -> None:
    cloud.apply()

    callers = {row.service: cloud.sim.table("policies")[f"service/{row.service}"]["bindings"] for row in FUNCTIONS}
    for row in FUNCTIONS:
        [binding] = callers[row.service]
        everybody = binding["members"] == ["allUsers"]
        assert everybody is row.public
        assert everybody or binding["members"] == [f"serviceAccount:dumont-scheduler@{PROJECT}.iam.gserviceaccount.com"]


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)
def test_each_function_starts_with_the_settings_and_secrets_that_it_gets(cloud: Cloud, row: Function) -> None:
    secrets = {**dict.fromkeys(DRAWN, "0" * 32), **cloud.parts.secret_values}
    target = make.target(cloud.parts, cloud.google(), ())
    [spec] = [w.spec for w in wanted(target, cloud.parts.archive, {}) if (w.kind, w.name) == ("function", row.service)]

    settings = Settings.from_env({**spec["env"], **{name: secrets[name] for name in spec["secrets"]}})
    app = bootstrap.build(settings, cloud.store)

    assert "market" not in row.rights or [*app.markets] == ["vast"]


def test_destroy_keeps_the_data_and_a_new_apply_takes_it_up_again(cloud: Cloud) -> None:
    cloud.apply()
    cloud.objects.stored["instances/acme.one/manifests/1"] = b"snapshot"
    kept = {"database": cloud.sim.table("databases")["dumont"], "secrets": dict(cloud.sim.table("secrets"))}

    done: list[Step] = []
    cloud.deployer().destroy(done.append, with_data=False)

    for gone in ("functions", "jobs", "accounts", "buckets", "objects", "services"):
        assert not cloud.sim.table(gone), gone
    assert cloud.sim.table("databases")["dumont"] is kept["database"]
    assert cloud.sim.table("secrets") == kept["secrets"]
    assert cloud.objects.stored["instances/acme.one/manifests/1"] == b"snapshot"
    assert done[0].kind == "webhook"  # nobody is told of an address that is about to go
    cloud.apply()
    assert {step.act for step in cloud.plan()} == {"keep"}
    assert cloud.sim.table("secrets") == kept["secrets"]


def test_destroy_with_data_leaves_nothing(cloud: Cloud) -> None:
    cloud.apply()
    cloud.objects.stored |= {f"instances/acme.one/packs/{number}": b"pack" for number in range(2 * DELETED_AT_ONCE + 1)}

    cloud.deployer().destroy(lambda _step: None, with_data=True)

    assert not cloud.sim.table("databases")
    assert not cloud.sim.table("secrets")
    assert not cloud.objects.stored


BILLED = ("functions", "services", "jobs", "buckets", "objects")
"""Tables of the simulated Google whose rows cost money; the data's are apart."""
BILLED_DATA = ("databases", "secrets")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("with_data", [False, True], ids=["data stays", "with data"])
def test_killed_before_every_single_call_a_destroy_goes_on_to_the_same_end(
    served: Served, built: Archive, tmp_path: Path, with_data: bool
) -> None:
    """To Google, the marketplace and the object store: from the world as each call found it, a new process goes on.

    The world is remembered before each call of one destroy, and put back: a kill leaves exactly that behind.
    """
    cloud = new_cloud(served, built, tmp_path, operation_s=OPERATION_S)
    cloud.apply()
    cloud.objects.stored["instances/acme.one/manifests/1"] = b"snapshot"
    worlds: list[Callable[[], None]] = []
    cloud.destroy(with_data=with_data, before=lambda: worlds.append(cloud.kept()))
    end = cloud.state()
    assert len(worlds) > 100
    assert [name for name in (*BILLED, *BILLED_DATA) if end.get(name)] == ([] if with_data else [*BILLED_DATA])
    assert bool(cloud.objects.stored) is not with_data

    for killed_before, put_back in enumerate(worlds, start=1):
        put_back()
        cloud.destroy(with_data=with_data)

        assert cloud.state() == end, f"killed before call {killed_before}"


def test_what_a_killed_apply_has_begun_is_waited_for_and_destroyed(
    served: Served, built: Archive, tmp_path: Path
) -> None:
    """Google refuses to delete what it still builds. A database that it was making is not seen yet: it is empty, costs
    nothing, and goes with the next destroy."""
    for kill_at in range(5, 400, KILLS_APART):
        cloud = new_cloud(served, built, _folder(tmp_path, kill_at))
        with contextlib.suppress(Killed):
            cloud.apply(kill_at)
        is_whole = cloud.calls.made < kill_at

        cloud.destroy(with_data=True)
        cloud.wait(LATE_S)
        cloud.sim.tick(cloud.now)
        assert not [name for name in BILLED if cloud.sim.table(name)], f"killed before call {kill_at}"
        cloud.destroy(with_data=True)

        assert not [name for name in (*BILLED, *BILLED_DATA) if cloud.sim.table(name)], f"killed before call {kill_at}"
        cloud.store.close()
        if is_whole:
            break


KILLS_APART = 53
LATE_S = 600
"""Long after the end of whatever was under way."""
OPERATION_S = 1.0
"""Long enough that every operation is found under way at least once."""


def _folder(parent: Path, name: object) -> Path:
    folder = parent / str(name)
    folder.mkdir()
    return folder
