"""What was asked of a pair ends with it, and what was sought for it, too."""

from __future__ import annotations

from typing import Any

from common.domain.instance import Phase, Protection, State
from common.domain.rental import RentalState
from common.views.standbys import MUTE, standbys
from common.workflows import hibernate, mirror, restore
from tests.hand_cranked import ACCOUNT, World
from tests.standby_story import lose_gpu, lose_standby, mirrored, of, standby, states, wish


def hibernated(world: World, id: str) -> None:
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))
    world.until(lambda: world.show(id).state is State.HIBERNATED)


def woken(world: World, id: str) -> None:
    wish(world, id, lambda loaded: restore.request_wake(world.app, loaded, world.now))


def asked_to_move(world: World, id: str) -> None:
    """To a standby that does not hear it."""
    standby(world, id).cut = True
    wish(world, id, lambda loaded: mirror.request_failover(world.app, loaded, now=world.now))


def at_work_with_a_candidate(world: World, id: str) -> None:
    """On the standby, because the GPU died; another one follows it, and nobody wants to go back yet."""
    standby(world, id).signs = ("somebody is logged in",)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.until(lambda: of(world, id).cand is not None)


def test_who_asked_to_move_and_hibernated_before_wakes_on_a_gpu_and_stays_there(world: World) -> None:
    id = mirrored(world)
    asked_to_move(world, id)
    hibernated(world, id)
    standby(world, id).cut = False

    woken(world, id)
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    world.pass_time(60)

    assert world.show(id).state is State.RUNNING


def test_a_move_that_was_asked_of_a_pair_that_died_is_not_made_by_the_next_one(world: World) -> None:
    id = mirrored(world)
    asked_to_move(world, id)
    lose_gpu(world, id)
    lose_standby(world, id)

    world.until(lambda: of(world, id).phase is Phase.BOOT)
    world.until(lambda: world.show(id).protection is Protection.MIRRORED, within_s=3600)
    world.pass_time(60)

    assert world.show(id).state is State.RUNNING


def test_a_hand_back_that_was_announced_before_a_hibernation_is_announced_anew(world: World) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    wish(world, id, lambda loaded: mirror.request_hand_back(world.app, loaded, now=world.now))
    world.until(lambda: of(world, id).hand_back_at is not None)
    hibernated(world, id)
    woken(world, id)
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)

    at_work_with_a_candidate(world, id)
    world.pass_time(120)

    assert of(world, id).phase is Phase.STANDBY


def test_who_hibernates_on_the_standby_pays_no_gpu_until_the_last_snapshot_is_in(world: World) -> None:
    id = mirrored(world)
    at_work_with_a_candidate(world, id)
    candidate = of(world, id).cand
    standby(world, id).cut = True
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))

    world.until(lambda: states(world, id).get(candidate) in (None, RentalState.RELEASED), within_s=180)

    assert of(world, id).phase is Phase.FREEZING
    standby(world, id).cut = False
    world.until(lambda: world.show(id).state is State.HIBERNATED)


def test_who_changes_their_mind_while_the_standby_freezes_gets_another_gpu(world: World) -> None:
    id = mirrored(world)
    at_work_with_a_candidate(world, id)
    standby(world, id).cut = True
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))
    world.pass_time(60)
    standby(world, id).cut = False
    woken(world, id)

    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.until(lambda: of(world, id).cand is not None)


def test_no_gpu_is_paid_for_while_nothing_can_be_handed_back_for_the_standby_is_silent(world: World) -> None:
    id = mirrored(world)
    at_work_with_a_candidate(world, id)
    standby(world, id).cut = True

    world.pass_time(2100, step_s=5)
    rented = of(world, id).n
    world.pass_time(2 * 3600, step_s=10)

    assert (of(world, id).cand, of(world, id).n) == (None, rented)
    assert [label for label, state in states(world, id).items() if state is RentalState.SERVING] == []
    assert world.followed[f"{ACCOUNT}.{id}"] < world.now, "nothing is due"
    assert standbys(world.app, ACCOUNT, world.now)[0].why == MUTE
    standby(world, id).cut = False
    wish(world, id, lambda loaded: mirror.request_hand_back(world.app, loaded, now=world.now))
    world.until(lambda: world.show(id).state is State.RUNNING)


def test_a_wake_from_a_hibernation_on_the_standby_may_fail_and_says_so(world: World, monkeypatch: Any) -> None:
    id = mirrored(world)
    lose_gpu(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    hibernated(world, id)
    monkeypatch.setattr(world.market, "search", lambda _wanted: [])

    woken(world, id)

    world.until(lambda: world.show(id).state is State.FAILED, step_s=5)
