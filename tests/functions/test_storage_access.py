"""What a host is given to reach the object store."""

from __future__ import annotations

import dataclasses
from typing import Any

from common.domain.health import Verdict
from common.domain.instance import State
from common.workflows import doctor
from tests.functions.test_story_by_hand import running, write
from tests.hand_cranked import World


def test_a_host_gets_credentials_for_its_own_prefix_and_long_enough_for_a_snapshot(world: World) -> None:
    access = world.access

    id = running(world)
    write(world, id)
    world.until(lambda: world.show(id).snapshot is not None)

    assert {prefix for prefix, _ in access.asked} == {f"instances/acme.{id}/"}
    assert min(for_s for _, for_s in access.asked) >= 12 * 3600
    place = world.writer(id).agent.memory.place
    assert place and place.credentials.expires_at


def test_without_credentials_nothing_is_ordered_and_nothing_is_lost(world: World) -> None:
    access = world.access
    id = running(world)
    write(world, id)
    access.is_down = True

    world.pass_time(1200, step_s=5)
    assert world.show(id).snapshot is None
    assert world.show(id).state is State.RUNNING
    access.is_down = False
    world.until(lambda: world.show(id).snapshot is not None, within_s=120)

    assert any(event == "no_storage_credentials" for event, _ in world.log)


def found(world: World) -> Any:
    return next(one for one in doctor.examine(world.app, world.now) if one.check == "storage access")


def test_the_doctor_says_whether_hosts_can_be_given_less_than_everything(world: World) -> None:
    assert found(world).verdict is Verdict.OK
    world.access.is_down = True
    assert found(world).verdict is Verdict.FAILED
    assert "S3_ROLE_ARN" in found(world).mend
    world.app = dataclasses.replace(world.app, storage_access=None)
    assert found(world).verdict is Verdict.WARNING
