"""The restore drill: what was sealed on a stranger's machine is opened on ours."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from common.cli import session
from common.cli.snapshots import snapshots
from common.domain.account import Role
from common.domain.instance import State
from common.domain.snapshot import SnapshotRecord
from common.errors import ObjectStoreError
from common.records import load, read
from common.views import instances as view
from common.workflows import drill
from jobs import drill_snapshots
from tests.functions.conftest import Api, key_for
from tests.functions.test_cli import signed_in
from tests.functions.test_story_by_hand import ask, running
from tests.hand_cranked import ACCOUNT, World

__all__ = ["signed_in"]
run = CliRunner()


def with_a_snapshot(world: World, **spec: Any) -> str:
    """Text, floats that are bit-shuffled, and bytes that nothing shrinks."""
    id = running(world, **spec)
    root = world.workspace(id)
    (root / "src").mkdir()
    for number in range(30):
        (root / f"src/{number}.py").write_text(f"value = {number}\n" * 200)
    (root / "noise").write_bytes(os.urandom(3 << 20))
    (root / "floats").write_bytes(b"".join(bytes((n % 251, n % 7, 60, 63)) for n in range(1 << 18)))
    (root / "empty").touch()
    world.until(lambda: world.show(id).snapshot is not None, within_s=1200)
    return id


def rot(world: World, id: str) -> str:
    """One bit of one pack changes; the store goes on to tell what it computed of the new bytes."""
    key = next(stored.key for stored in world.objects.list(f"instances/{ACCOUNT}.{id}/packs/"))
    content = bytearray(world.objects.get(key))
    content[len(content) // 2] ^= 1
    world.objects.put(key, bytes(content))
    return key


def story(world: World, id: str, kind: str) -> list[str]:
    return [row.text for row in view.events(world.app, ACCOUNT, id) if row.kind == kind]


def test_a_sound_snapshot_is_read_back_whole_and_the_story_says_so(world: World) -> None:
    id = with_a_snapshot(world)

    done = drill_snapshots.run(world.app)

    assert (done["drilled"], done["damaged"], done["unanswered"]) == (1, [], 0)
    (line,) = story(world, id, "drill")
    assert "whole, 33 of 33 files, all sound" in line
    assert drill_snapshots.run(world.app)["drilled"] == 0
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    world.pass_time(8 * 86_400, step_s=3600)
    assert drill_snapshots.run(world.app)["drilled"] == 1


def test_a_large_snapshot_is_drilled_in_samples_that_are_drawn_anew(world: World) -> None:
    id = with_a_snapshot(world)
    (world.workspace(id) / "more").write_bytes(os.urandom(70 << 20))
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    settings = world.app.settings.model_copy(update={"drill_most_mb": 40})
    world.app = world.app.__class__(**{**vars(world.app), "settings": settings})

    drilled = [drill.drill_newest(world.app, f"{ACCOUNT}.{id}", world.now) for _ in range(6)]

    assert all(found and found.is_sound and not found.is_whole for found in drilled)
    assert all(0 < found.bytes < found.of_bytes for found in drilled if found)
    assert len({found.bytes for found in drilled if found}) > 1


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "hibernated"])
def test_damage_is_told_and_a_machine_that_runs_sends_everything_anew(world: World, is_running: bool) -> None:
    id = with_a_snapshot(world)
    if not is_running:
        ask(world, id, "hibernate")
        world.until(lambda: world.show(id).state is State.HIBERNATED)
    before = world.show(id).snapshot
    rot(world, id)

    done = drill_snapshots.run(world.app)

    assert done["damaged"] == [f"{ACCOUNT}.{id}"]
    (line,) = story(world, id, "snapshot_damaged")
    assert before and before.id.rpartition(".")[2] in line
    record = read(world.app, "snapshots", before.id, SnapshotRecord)
    assert record and record.value.damaged
    if is_running:
        world.until(lambda: world.show(id).snapshot != before, within_s=120)
        again = drill.drill_newest(world.app, f"{ACCOUNT}.{id}", world.now)
        assert again and again.is_sound and again.is_whole


def test_a_pack_that_is_gone_is_damage_and_a_store_that_is_silent_is_none(world: World) -> None:
    id = with_a_snapshot(world)
    key = f"{ACCOUNT}.{id}"

    class Silent:
        def __getattr__(self, name: str) -> Any:
            raise ObjectStoreError("no answer")

    silent = world.app.__class__(**{**vars(world.app), "objects": Silent()})
    assert drill.run(silent, world.now).unanswered == 1
    assert load(world.app, key).instance.value.drill_due_at is not None
    assert not story(world, id, "snapshot_damaged")

    world.objects.delete([stored.key for stored in world.objects.list(f"instances/{key}/packs/")])
    found = drill.drill_newest(world.app, key, world.now)
    assert found and not found.is_sound
    assert "is not in the store" in found.damage


def test_a_drill_on_demand_says_what_it_found_by_its_exit_code(signed_in: World) -> None:
    id = with_a_snapshot(signed_in)
    sound = run.invoke(snapshots, ["drill", id, "--json"])
    assert sound.exit_code == session.OK, sound.output
    assert json.loads(sound.stdout)["is_whole"] is True
    assert "is sound: all of it" in run.invoke(snapshots, ["drill", id]).stdout
    terms = json.loads(run.invoke(snapshots, ["terms", id, "--json"]).stdout)
    assert terms["last_drill"]["is_sound"] is True
    stranger = Api(signed_in, key_for(signed_in, "other", Role.ADMIN))
    name = terms["last_drill"]["snapshot"]
    assert stranger.post(f"/instances/{id}/snapshots/{name}/drill").status_code == 404

    rot(signed_in, id)

    damaged = run.invoke(snapshots, ["drill", id])
    assert damaged.exit_code == 1
    assert "is damaged" in damaged.stdout
    assert run.invoke(snapshots, ["drill", id, "9-9"]).exit_code == session.NOT_FOUND
