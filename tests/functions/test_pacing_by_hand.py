"""Many instances on one marketplace account by a hand-cranked clock: limits are kept, and nobody starves."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.adapters.s3 import S3
from common.domain.instance import State
from common.domain.pacing import Priority
from common.errors import Throttled
from common.records import load
from common.workflows import hibernate, lifecycle, pacing, terminate
from infra.demo.s3_server import S3Server
from tests.hand_cranked import ACCOUNT, World

COUNT = 20


def states(world: World, ids: list[str]) -> set[State]:
    return {world.show(id).state for id in ids}


def ask(world: World, id: str, verb: str) -> None:
    key = f"{ACCOUNT}.{id}"
    if verb == "hibernate":
        hibernate.request(world.app, load(world.app, key), reason="asked", now=world.now)
    else:
        terminate.request(world.app, load(world.app, key), discard=True, now=world.now)
    lifecycle.hint(world.app, key)


@pytest.mark.timeout(290)
def test_twenty_instances_at_once_are_never_refused_as_too_frequent(world: World) -> None:
    ids = [world.provision(gpu=gpu) for gpu in ("RTX 4090", "H100 SXM") for _ in range(COUNT // 2)]

    deployed_s = world.until(lambda: states(world, ids) == {State.RUNNING}, within_s=400)
    rented = len(world.sim.all_contracts())
    for id in ids[: COUNT // 2]:
        ask(world, id, "hibernate")
    hibernated_s = world.until(lambda: states(world, ids[: COUNT // 2]) == {State.HIBERNATED}, within_s=300)
    for id in ids[COUNT // 2 :]:
        ask(world, id, "discard")
    released_s = world.until(lambda: not world.sim.contracts(), within_s=300)

    print(f"deployed {deployed_s:.0f} s, hibernated {hibernated_s:.0f} s, released {released_s:.0f} s; {rented} rented")
    assert world.throttled == []
    assert rented == COUNT, "an instance lost its offer to another one of ours"
    assert deployed_s <= COUNT * 4.5 * 1.1 + 90
    assert released_s <= COUNT / 2 * 3.0 * 1.1 + 30


@pytest.mark.timeout(290)
def test_a_destroy_waits_for_no_poll_where_all_calls_share_one_limit(
    tmp_path: Path, s3_on_loopback: S3Server, objects: S3
) -> None:
    world = World(tmp_path, s3_on_loopback, objects, with_tensordock=True)
    ids = [world.provision(gpu="RTX A6000") for _ in range(6)]
    world.until(lambda: states(world, ids) == {State.RUNNING}, within_s=300)
    for id in ids:
        ask(world, id, "discard")
    polls = 0

    def released() -> bool:
        nonlocal polls
        polls += _look_as_often_as_one_may(world)
        return not world.dock_sim.contracts()

    released_s = world.until(released, within_s=60)

    assert world.throttled == []
    assert polls > 0
    assert released_s <= 30
    world.close()


def _look_as_often_as_one_may(world: World) -> int:
    made = 0
    for _ in range(50):
        try:
            pacing.market(world.app, "tensordock", Priority.POLL, who="looker").list()
        except Throttled:
            break
        made += 1
    return made
