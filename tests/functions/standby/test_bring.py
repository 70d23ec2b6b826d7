"""Files of an older snapshot, asked for while the standby writes: they come with the next GPU, and to its mirror."""

from __future__ import annotations

from common.domain.account import Role
from common.domain.instance import Protection, State
from common.views import snapshots as kept
from tests.functions.conftest import Api, key_for
from tests.hand_cranked import ACCOUNT, World
from tests.standby_story import lose_gpu, mirrored, of, standby, write


def test_what_is_asked_for_on_the_standby_comes_with_the_next_gpu_and_is_mirrored(world: World) -> None:
    id = mirrored(world)
    write(world, id, "notes.txt", "of the snapshot\n")
    world.until(lambda: any(row.files for row in kept.listed(world.app, ACCOUNT, id)), within_s=3600)
    name = next(row.id for row in kept.listed(world.app, ACCOUNT, id) if row.files)
    write(world, id, "notes.txt", "spoilt since\n")
    world.pass_time(5)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)

    api = Api(world, key_for(world, ACCOUNT, Role.MEMBER))
    asked = api.post(f"/instances/{id}/snapshots/{name}/restore", {"paths": ["notes.txt"]})

    assert asked.json["operation"]["detail"].startswith("comes with the next GPU")
    world.pass_time(10)
    assert not (standby(world, id).agent.workspace / "restored").exists()
    world.until(lambda: of(world, id).copies == ())
    assert world.show(id).state is State.RUNNING
    found = world.workspace(id) / "restored" / name / "notes.txt"
    assert found.read_text() == "of the snapshot\n"
    assert (world.workspace(id) / "notes.txt").read_text() == "spoilt since\n"
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    mirror = standby(world, id).agent.workspace / "restored" / name / "notes.txt"
    world.until(mirror.exists)
    assert mirror.read_text() == "of the snapshot\n"
