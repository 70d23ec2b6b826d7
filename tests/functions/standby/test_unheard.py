"""The agent on a GPU is gone, and the programs of its pair live on: beats and files come, and reports do not."""

from __future__ import annotations

import pytest

from common.domain.instance import Protection, State
from common.domain.rental import RentalState
from common.workflows import hibernate, restore, terminate
from tests.hand_cranked import World
from tests.standby_story import mirrored, of, standby, states, wish, write


def unheard(world: World) -> str:
    """An instance of such a GPU, with a file that both machines have and no snapshot; its id."""
    id = mirrored(world)
    gpu = world.writer(id)
    gpu.agent.step = lambda _now: gpu.link.tend()  # type: ignore[method-assign, union-attr, return-value, func-returns-value]
    write(world, id, "kept.txt", "on both\n")
    world.pass_time(5)
    assert (standby(world, id).agent.workspace / "kept.txt").exists()
    return id


def test_the_standby_takes_over_and_the_gpu_bills_no_longer(world: World) -> None:
    id = unheard(world)
    gpu = of(world, id).writer or ""

    world.until(lambda: world.show(id).state is State.ON_STANDBY, within_s=2100, step_s=5)
    assert (world.workspace(id) / "kept.txt").read_text() == "on both\n"

    world.until(lambda: states(world, id).get(gpu) in (None, RentalState.RELEASED))
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    assert (world.workspace(id) / "kept.txt").read_text() == "on both\n"


def test_a_gpu_that_only_does_not_say_anything_new_is_heard(world: World) -> None:
    id = mirrored(world)

    world.pass_time(3600, step_s=5)

    assert not of(world, id).called
    assert world.show(id).state is State.RUNNING


def test_it_hibernates_with_everything_that_its_mirror_took(world: World) -> None:
    id = unheard(world)
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))

    world.until(lambda: world.show(id).state is State.HIBERNATED, within_s=2400, step_s=5)
    wish(world, id, lambda loaded: restore.request_wake(world.app, loaded, world.now))

    world.until(lambda: world.show(id).state is State.RUNNING)
    assert (world.workspace(id) / "kept.txt").read_text() == "on both\n"


@pytest.mark.parametrize("discard", [False, True])
def test_it_can_be_terminated(world: World, discard: bool) -> None:
    id = unheard(world)
    wish(world, id, lambda loaded: terminate.request(world.app, loaded, discard=discard, now=world.now))

    world.until(lambda: world.show(id).state is State.TERMINATED, within_s=2400, step_s=5)

    assert (of(world, id).pointer is None) == discard


def test_a_standby_that_is_not_there_is_not_asked_before_it_is(world: World) -> None:
    id = unheard(world)
    standby(world, id).cut = True

    world.pass_time(3600, step_s=10)

    assert not of(world, id).called
    standby(world, id).cut = False
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
