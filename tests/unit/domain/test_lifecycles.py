"""The two lifecycles as tables: legal, complete, and every state can end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from common.domain import instance, rental
from common.domain.instance import Instance, Phase, State, Want, state_of
from common.domain.rental import Label, RentalState
from common.domain.spec import Spec
from common.errors import IllegalMove
from common.workflows.lifecycle import RENTAL_STEPS, STEPS

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = b"a key of the deployment"


def reachable(moves: Mapping, start: object) -> set:
    seen, waiting = set(), [start]
    while waiting:
        state = waiting.pop()
        if state not in seen:
            seen.add(state)
            waiting += moves[state]
    return seen


@pytest.mark.parametrize(
    ("moves", "states", "start", "end"),
    [
        (instance.MOVES, Phase, Phase.DOWN, Phase.ENDED),
        (rental.MOVES, RentalState, RentalState.CREATING, RentalState.RELEASED),
    ],
    ids=["instance", "rental"],
)
def test_every_state_is_reachable_and_can_end(moves: Mapping, states: type, start: object, end: object) -> None:
    assert reachable(moves, start) == set(states)
    assert all(end in reachable(moves, state) for state in states)


def test_every_state_has_a_step() -> None:
    assert set(STEPS) == set(Phase)
    assert all(STEPS[phase] for phase in Phase)
    assert set(RENTAL_STEPS) == set(RentalState)


def test_a_retired_rental_never_comes_back() -> None:
    assert rental.MOVES[RentalState.RELEASING] == {RentalState.RELEASED}
    assert rental.MOVES[RentalState.RELEASED] == frozenset()


def test_an_illegal_move_is_refused() -> None:
    with pytest.raises(IllegalMove):
        make().to(Phase.UP, at=NOW)


def make(**changes: object) -> Instance:
    fresh = Instance(id="i1", account="a1", spec=Spec(gpu="RTX_4090"), at=NOW, created_at=NOW)
    return fresh.having(**changes)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, State.REQUESTED),
        ({"phase": Phase.BOOT}, State.REQUESTED),
        ({"phase": Phase.BOOT, "race": ("x",)}, State.PROVISIONING),
        ({"phase": Phase.UP, "epoch": 2, "started_epoch": 1}, State.RESTORING),
        ({"phase": Phase.UP, "epoch": 2, "started_epoch": 2}, State.RUNNING),
        ({"phase": Phase.FREEZING, "want": Want.DOWN}, State.FREEZING),
        ({"want": Want.DOWN}, State.HIBERNATED),
        ({"want": Want.DOWN, "failure": instance.Failure(code="no_offer", detail="none")}, State.FAILED),
        ({"phase": Phase.UP, "want": Want.GONE}, State.TERMINATING),
        ({"phase": Phase.ENDED, "want": Want.GONE}, State.TERMINATED),
    ],
)
def test_the_state_a_user_sees_follows_from_the_record(changes: dict, state: State) -> None:
    assert state_of(make(**changes), []) is state


def test_a_gpu_name_may_be_written_with_underscores() -> None:
    assert make().spec.gpu == "RTX 4090"


def test_a_label_is_known_again_and_a_forged_or_foreign_one_is_not() -> None:
    label = Label.make(deployment="d1", owner="i1", n=7, key=KEY)

    assert Label.parse(str(label), deployment="d1", key=KEY) == label
    assert Label.parse(str(label)[:-8] + "00000000", deployment="d1", key=KEY) is None
    assert Label.parse(str(label), deployment="d2", key=KEY) is None
    assert Label.parse("someone-elses", deployment="d1", key=KEY) is None
