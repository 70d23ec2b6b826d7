"""`dumont snapshots`: what an instance has kept, what lies between two, and whether one is really there."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from common.cli import session
from common.cli.snapshots import snapshots
from common.domain.account import Role
from common.snapshots import repack
from common.views import snapshots as view
from tests.functions.conftest import Api, key_for
from tests.functions.test_cli import signed_in
from tests.functions.test_story_by_hand import running, write
from tests.hand_cranked import ACCOUNT, World

__all__ = ["signed_in"]
run = CliRunner()


def asked(*words: str, code: int = session.OK) -> Any:
    result = run.invoke(snapshots, [*words, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == session.OK else result.stderr


def with_two_snapshots(world: World) -> tuple[str, str, str]:
    """An instance with (older, newer); between them one file changed and one was added."""
    id = running(world)
    write(world, id, "first\n")
    world.until(lambda: len(view.listed(world.app, ACCOUNT, id)) == 1, within_s=3600)
    write(world, id, "second\n")
    (world.workspace(id) / "new.txt").write_text("new\n")
    world.until(lambda: len(view.listed(world.app, ACCOUNT, id)) == 2, within_s=3600)
    newer, older = asked("list", id)["items"]
    assert (newer["is_current"], older["is_current"]) == (True, False)
    assert newer["files"] == older["files"] + 1
    return id, older["id"], newer["id"]


def test_snapshots_are_listed_compared_and_checked(signed_in: World) -> None:
    id, older, newer = with_two_snapshots(signed_in)

    found = asked("diff", id, older, newer)
    assert found["added"] == {"count": 1, "listed": ["new.txt"]}
    assert found["changed"] == {"count": 1, "listed": ["notes.txt"]}
    assert found["removed"]["count"] == 0
    assert asked("verify", id, newer)["files"] == 2
    assert "new.txt" in run.invoke(snapshots, ["diff", id, older, newer]).stdout
    assert newer in run.invoke(snapshots, ["list", id]).stdout


def test_a_snapshot_that_misses_an_object_is_not_whole(signed_in: World) -> None:
    id, _, newer = with_two_snapshots(signed_in)
    packs = [stored.key for stored in signed_in.objects.list("") if "/packs/" in stored.key]
    signed_in.objects.delete(packs)

    said = asked("verify", id, newer, code=session.CONFLICT)

    assert "is not in the store" in said


def test_what_is_kept_in_vain_is_sent_anew_by_the_next_one(
    signed_in: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(repack, "WASTE_BYTES", 1 << 19)
    id = running(signed_in)
    for number in range(5):
        (signed_in.workspace(id) / f"{number}").write_bytes(os.urandom(200_000))
    signed_in.until(lambda: len(view.listed(signed_in.app, ACCOUNT, id)) == 1, within_s=3600)
    for number in range(4):
        (signed_in.workspace(id) / f"{number}").unlink()

    signed_in.until(lambda: len(view.listed(signed_in.app, ACCOUNT, id)) == 3, within_s=7200)

    newest, thin, first = asked("list", id)["items"]
    assert [row["wasted_bytes"] for row in (newest, first)] == [0, 0]
    assert 700_000 < thin["wasted_bytes"] < 900_000
    assert (thin["stored_bytes"] < 10_000) and 200_000 < newest["stored_bytes"] < 250_000
    assert asked("verify", id, first["id"])["files"] == 5


def test_another_tenants_and_unknown_snapshots_are_not_found(signed_in: World) -> None:
    id, older, newer = with_two_snapshots(signed_in)
    stranger = Api(signed_in, key_for(signed_in, "other", Role.ADMIN))

    for path in ("snapshots", f"snapshots/{newer}/check", f"snapshots/{newer}/since/{older}"):
        assert stranger.get(f"/instances/{id}/{path}").status_code == 404, path
    asked("verify", id, "9-9", code=session.NOT_FOUND)
    asked("diff", id, older, "not one", code=session.NOT_FOUND)


def test_the_terms_are_shown_changed_and_reach_the_host(signed_in: World) -> None:
    id = running(signed_in)
    shown = asked("terms", id)
    assert (shown["snapshot_every_s"], shown["keep"]["last"], shown["bytes_freed"]) == (900, 12, 0)

    words = ("--every", "10m", "--keep", "2,0,0,0", "--max-cpus", "1", "--max-mbit-s", "100", "--freeze")
    changed = asked("terms", id, *words)
    assert (changed["snapshot_every_s"], changed["keep"]) == (600, {"last": 2, "hourly": 0, "daily": 0, "weekly": 0})
    write(signed_in, id)
    signed_in.until(lambda: view.listed(signed_in.app, ACCOUNT, id), within_s=700)
    place = signed_in.writer(id).agent.memory.place

    assert place
    assert {name: place.args[name] for name in ("max_cpus", "max_mbit_s", "freeze")} == {
        "max_cpus": 1,
        "max_mbit_s": 100,
        "freeze": True,
    }
    assert not signed_in.writer(id).writers.frozen
    assert asked("terms", id, "--max-cpus", "0", "--no-freeze")["snapshot_max_cpus"] is None
    assert "every 10 min; kept: 2 last" in run.invoke(snapshots, ["terms", id]).stdout


def test_terms_that_make_no_sense_change_nothing(signed_in: World) -> None:
    id = running(signed_in)
    api = Api(signed_in, key_for(signed_in, "acme", Role.MEMBER))
    stranger = Api(signed_in, key_for(signed_in, "other", Role.ADMIN))
    path = f"/api/v1/instances/{id}/snapshots/terms"

    for wrong in (
        {"keep": {"last": 0}},
        {"keep": {"lasts": 3}},
        {"snapshot_every_s": 1},
        {"snapshot_max_mbit_s": 0.1},
        {"snapshot_max_cpus": -1},
        {"gpu": "H100"},
    ):
        assert api.call("PATCH", path, wrong).status_code == 422, wrong
    assert stranger.call("PATCH", path, {"snapshot_freeze": True}).status_code == 404
    asked("terms", id, "--every", "soon", code=session.USAGE)
    asked("terms", id, "--keep", "many", code=session.USAGE)

    assert asked("terms", id)["snapshot_every_s"] == 900


def test_fewer_kept_snapshots_are_given_up_within_the_hour(signed_in: World) -> None:
    id, _, newer = with_two_snapshots(signed_in)

    asked("terms", id, "--keep", "1,0,0,0")
    signed_in.pass_time(130)

    assert [row["id"] for row in asked("list", id)["items"]] == [newer]
    assert asked("terms", id)["snapshots_removed"] == 1
