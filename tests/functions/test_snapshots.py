"""`dumont snapshots`: what an instance has kept, what lies between two, and whether one is really there."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from common.cli import session
from common.cli.snapshots import snapshots
from common.domain.account import Role
from tests.functions.conftest import Api, key_for
from tests.functions.test_cli import signed_in
from tests.functions.test_story_by_hand import running, write
from tests.hand_cranked import World

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
    world.until(lambda: len(asked("list", id)["items"]) == 1, within_s=3600)
    write(world, id, "second\n")
    (world.workspace(id) / "new.txt").write_text("new\n")
    world.until(lambda: len(asked("list", id)["items"]) == 2, within_s=3600)
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


def test_another_tenants_and_unknown_snapshots_are_not_found(signed_in: World) -> None:
    id, older, newer = with_two_snapshots(signed_in)
    stranger = Api(signed_in, key_for(signed_in, "other", Role.ADMIN))

    for path in ("snapshots", f"snapshots/{newer}/check", f"snapshots/{newer}/since/{older}"):
        assert stranger.get(f"/instances/{id}/{path}").status_code == 404, path
    asked("verify", id, "9-9", code=session.NOT_FOUND)
    asked("diff", id, older, "not one", code=session.NOT_FOUND)
