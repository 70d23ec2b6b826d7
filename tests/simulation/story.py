"""Scripted lives of one instance, through every phase: what the sweep breaks at every single call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.users import Owned

if TYPE_CHECKING:
    from tests.simulation.world import World

LOOK_S = 10.0
PATIENCE_S = 5_400.0
"""Longer than any fault: what is not there by then is judged as it is."""


def live(world: World, owned: Owned) -> None:
    """provision, fall idle, wake, lose the machine, recover, terminate, come back."""
    users = world.users
    owned.key = users.provision(owned)
    _until(world, owned, _runs)
    owned.busy = [(world.loop.now, False)]
    _until(world, owned, lambda record: record["phase"] == "down")
    owned.busy = [(world.loop.now, True)]
    _ask(world, owned, "wake", _runs)
    _lose_the_writer(world, owned)
    _until(world, owned, lambda record: record["phase"] != "up")
    _until(world, owned, _runs)
    _ask(world, owned, "terminate", lambda record: record["phase"] == "ended")
    _ask(world, owned, "restore", _runs)
    owned.final = "up"
    world.faults_end = world.loop.now
    users.insist(owned)


def live_with_standby(world: World, owned: Owned) -> None:
    """provision, be mirrored, lose the GPU, work on the standby, go back to a GPU, do without a standby, have one."""
    owned.key = world.users.provision(owned)
    _until(world, owned, _is_mirrored)
    _lose_the_writer(world, owned)
    _until(world, owned, lambda record: record["phase"] == "standby")
    _until(world, owned, lambda record: record["phase"] == "up" or record["cand"] is not None)
    world.users.ask_of_standby(owned, "hand_back")
    _until(world, owned, _is_mirrored)
    world.users.ask_of_standby(owned, "without_standby")
    _until(world, owned, lambda record: record["standby"] is None)
    world.users.ask_of_standby(owned, "with_standby")
    _until(world, owned, _is_mirrored)
    owned.final = "up"
    world.faults_end = world.loop.now
    world.users.insist(owned)


def _lose_the_writer(world: World, owned: Owned) -> None:
    machine = world.machine_of((world.record(owned.key) or {}).get("writer"))
    if machine and machine.contract.listed:
        machine.account.lose(machine.contract, world.loop.clock())


def _ask(world: World, owned: Owned, verb: str, done: Callable[[dict[str, Any]], bool]) -> None:
    world.users.ask(owned, verb)
    _until(world, owned, done)


def _until(world: World, owned: Owned, done: Callable[[dict[str, Any]], bool]) -> None:
    """A user waits so long, and asks again when the product gave up."""
    until = world.loop.now + PATIENCE_S
    while world.loop.now < until:
        record = world.record(owned.key)
        if record and done(record):
            return
        if record and record["failure"] and record["phase"] == "down" and record["want"] == "down":
            world.users.ask(owned, "wake")
        world.loop.sleep(LOOK_S)


def _runs(record: dict[str, Any]) -> bool:
    return bool(record["phase"] == "up" and record["started_epoch"] == record["epoch"])


def _is_mirrored(record: dict[str, Any]) -> bool:
    return _runs(record) and record["mirror"] is not None
