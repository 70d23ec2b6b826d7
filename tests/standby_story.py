"""Words of the standby's stories: an instance that is mirrored, and how its machines are lost."""

from __future__ import annotations

from common.domain.instance import Instance, Protection
from common.domain.rental import RentalState
from common.records import load
from common.workflows import lifecycle
from tests.hand_cranked import ACCOUNT, Machine, World


def mirrored(world: World) -> str:
    """An instance that runs on a GPU and is mirrored."""
    id = world.provision()
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)
    return id


def of(world: World, id: str) -> Instance:
    return world.record(id)


def standby(world: World, id: str) -> Machine:
    return world.machines[of(world, id).standby or ""]


def write(world: World, id: str, name: str, text: str) -> None:
    (world.workspace(id) / name).write_text(text)


def lose_gpu(world: World, id: str) -> str:
    """The GPU's machine is gone from one second to the next; its label."""
    label = of(world, id).writer or ""
    row = next(c for c in world.sim.contracts() if c.label == label)
    world.sim.lose(row.id, world.now)
    return label


def lose_standby(world: World, id: str) -> None:
    world.google.lose(world.google.contract_of(of(world, id).standby), world.now)


def wish(world: World, id: str, what) -> None:
    what(load(world.app, f"{ACCOUNT}.{id}"))
    lifecycle.hint(world.app, f"{ACCOUNT}.{id}")


def states(world: World, id: str) -> dict[str, RentalState]:
    return {kept.value.label: kept.value.state for kept in load(world.app, f"{ACCOUNT}.{id}").machines}
