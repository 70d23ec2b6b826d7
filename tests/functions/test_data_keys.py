"""Data keys: one per instance, kept wrapped; the secret that wraps them changes, and no snapshot is touched."""

from __future__ import annotations

import dataclasses

import pytest

from common import auth
from common.domain.instance import Instance, State
from common.errors import KeyLost
from common.ports import App
from common.records import dump, load, manifest_key_of
from common.views import snapshots as view
from common.workflows import prune
from jobs import prune_snapshots
from tests.functions.test_prune import with_snapshots
from tests.functions.test_story_by_hand import ask, running
from tests.hand_cranked import ACCOUNT, World

OLD, NEW = "the first secret of sixteen", "another secret of sixteen"


def with_secrets(world: World, now: str | None, before: str | None = None) -> App:
    settings = world.app.settings.model_copy(update={"snapshot_secret": now, "snapshot_secret_before": before})
    return dataclasses.replace(world.app, settings=settings)


def instance(world: World, id: str) -> Instance:
    return load(world.app, f"{ACCOUNT}.{id}").instance.value


def test_every_instance_has_a_key_of_its_own_that_is_nowhere_written_down(world: World) -> None:
    first, second = (instance(world, world.provision()) for _ in range(2))
    keys = [manifest_key_of(world.app, one) for one in (first, second)]

    assert len(set(keys)) == 2
    assert all(len(key) == 32 for key in keys)
    assert not any(key.hex() in f"{dump(one)}" for key, one in zip(keys, (first, second), strict=True))
    assert world.app.deployment().derive("manifest", first.key) not in keys


def test_another_secret_wraps_the_keys_anew_and_the_snapshots_stay_as_they_are(world: World) -> None:
    world.app = with_secrets(world, OLD)
    id = with_snapshots(world, 2)
    before, stored = instance(world, id), {s.key: s.md5 for s in world.objects.list("instances/")}
    key = manifest_key_of(world.app, before)

    world.app = with_secrets(world, NEW, OLD)
    assert view.checked(world.app, ACCOUNT, id, view.listed(world.app, ACCOUNT, id)[0].id).files == 1
    assert prune_snapshots.run(world.app)["rewrapped"] == 1
    assert prune_snapshots.run(world.app)["rewrapped"] == 0

    world.app = with_secrets(world, NEW)
    after = instance(world, id)
    assert after.data_key != before.data_key
    assert manifest_key_of(world.app, after) == key
    assert {s.key: s.md5 for s in world.objects.list("instances/") if "/prune/" not in s.key} == {
        name: md5 for name, md5 in stored.items() if "/prune/" not in name
    }
    ask(world, id, "wake")
    world.until(lambda: world.show(id).state is State.RUNNING)
    assert (world.workspace(id) / "notes.txt").read_text() == "the last\n"


def test_a_secret_that_is_gone_is_named_and_nothing_is_lost(world: World) -> None:
    world.app = with_secrets(world, OLD)
    id = world.provision()

    world.app = with_secrets(world, NEW)
    with pytest.raises(KeyLost, match="DUMONT_SNAPSHOT_SECRET_BEFORE"):
        manifest_key_of(world.app, instance(world, id))
    assert prune.rewrap(world.app) == 0

    world.app = with_secrets(world, NEW, OLD)
    assert len(manifest_key_of(world.app, instance(world, id))) == 32


def test_a_wrapped_key_opens_for_its_own_instance_only(world: World) -> None:
    one, other = (instance(world, world.provision()) for _ in range(2))

    with pytest.raises(KeyLost):
        manifest_key_of(world.app, other.having(data_key=one.data_key))
    with pytest.raises(KeyLost):
        auth.unwrap("not hex", "x", under=bytes(32))


def test_an_instance_of_before_keeps_its_derived_key(world: World) -> None:
    one = instance(world, world.provision()).having(data_key=None, wrapped_by=None)

    assert manifest_key_of(world.app, one) == world.app.deployment().derive("manifest", one.key)


def test_a_purge_forgets_the_key(world: World) -> None:
    id = running(world)
    ask(world, id, "discard")
    world.until(lambda: world.show(id).state is State.TERMINATED)

    world.pass_time(8 * 86_400, step_s=3600)

    assert instance(world, id).purged_at
    assert instance(world, id).data_key is None
