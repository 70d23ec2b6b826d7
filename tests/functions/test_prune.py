"""Old snapshots go, what they alone needed goes a day later, and nothing that anybody needs goes ever."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from common.domain.instance import Instance, State
from common.domain.retention import Retention
from common.domain.snapshot import SnapshotRecord
from common.errors import ObjectStoreError, StoreError
from common.ports import every
from common.records import dump, load, manifest_key_of
from common.snapshots import engine
from common.views import snapshots as view
from common.workflows import prune
from jobs import prune_snapshots
from tests.functions.test_story_by_hand import ask, running, write
from tests.hand_cranked import ACCOUNT, World

LAST_TWO = Retention(last=2, hourly=0, daily=0, weekly=0)
DAY_S = 86_400.0


def with_snapshots(world: World, count: int, **spec: Any) -> str:
    """A hibernated instance that kept so many; each has a file that no other has."""
    id = running(world, snapshot_every_s=5, **spec)
    for number in range(count - 1):
        write(world, id, f"number {number}\n")
        world.until(lambda number=number: len(listed(world, id)) > number, within_s=3600)
    write(world, id, "the last\n")
    ask(world, id, "hibernate")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    return id


def listed(world: World, id: str) -> list[str]:
    return [row.id for row in view.listed(world.app, ACCOUNT, id)]


def keys(world: World, what: str) -> set[str]:
    return {stored.key for stored in world.objects.list("instances/") if f"/{what}/" in stored.key}


def records(world: World) -> list[SnapshotRecord]:
    return [SnapshotRecord.model_validate(doc.data) for doc in every_record(world)]


def every_record(world: World) -> list[Any]:
    key = next(iter(keys(world, "manifests"))).split("/")[1]
    return list(every(world.store, "snapshots", [("instance_key", "==", key)], order_by="taken_at", newest_first=True))


def all_whole(world: World, id: str) -> bool:
    return all(view.checked(world.app, ACCOUNT, id, name).files >= 1 for name in listed(world, id))


def story(world: World, id: str) -> list[str]:
    from common.views import instances

    return [row.text for row in instances.events(world.app, ACCOUNT, id) if row.kind == "pruned"]


def test_old_snapshots_go_at_once_and_their_packs_a_day_later(world: World) -> None:
    id = with_snapshots(world, 5, keep=LAST_TWO)
    before = keys(world, "packs")

    world.pass_time(world.timing.prune_every_s, step_s=60)
    assert len(listed(world, id)) == len(keys(world, "manifests")) == len(records(world)) == 2
    assert keys(world, "packs") == before
    world.pass_time(DAY_S, step_s=600)

    assert len(keys(world, "packs")) == 2 < len(before)
    assert all_whole(world, id)
    assert len(story(world, id)) == 2
    assert "3 old snapshots removed, 0 bytes freed" in story(world, id)[0]
    ask(world, id, "wake")
    world.until(lambda: world.show(id).state is State.RUNNING)
    assert (world.workspace(id) / "notes.txt").read_text() == "the last\n"


def test_an_instance_with_nothing_old_is_not_looked_at_again(world: World) -> None:
    id = with_snapshots(world, 2)

    world.pass_time(2 * world.timing.prune_every_s, step_s=60)

    assert load(world.app, f"{ACCOUNT}.{id}").instance.value.prune_due_at is None
    assert prune_snapshots.run(world.app)["instances"] == 0


class Killed(BaseException):
    """The invocation is gone: no handler of the product's sees it."""


class Mortal:
    """A port whose n-th call, counted over all ports, is the last one; after it or before it."""

    def __init__(self, port: Any, calls: list[int], after: bool) -> None:
        self._port, self._calls, self._after = port, calls, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        do = getattr(self._port, name)

        def call(*args: Any, **words: Any) -> Any:
            self._calls[0] -= 1
            if self._calls[0] == 0 and not self._after:
                raise Killed
            answer = do(*args, **words)
            if self._calls[0] == 0:
                raise Killed
            return answer

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_is_killed_at_any_call_is_made_good_by_the_next(world: World, after: bool) -> None:
    id = with_snapshots(world, 4, keep=LAST_TWO)
    key = f"{ACCOUNT}.{id}"
    kills = 0
    for n in range(1, 200):
        calls = [n]
        mortal = dataclasses.replace(
            world.app,
            store=Mortal(world.app.store, calls, after),
            objects=Mortal(world.app.objects, calls, after),
        )
        try:
            prune.prune_instance(mortal, key, world.now)
        except Killed:
            kills += 1
            assert all_whole(world, id)
            world.now += timedelta(hours=13)  # so that graces end between the runs
            continue
        break
    prune.prune_instance(world.app, key, world.now)
    world.now += timedelta(days=2)
    prune.prune_instance(world.app, key, world.now)

    assert kills >= 10
    assert len(listed(world, id)) == len(keys(world, "manifests")) == len(keys(world, "packs")) == 2
    assert all_whole(world, id)


def test_two_runs_at_once_end_as_one_does(world: World) -> None:
    id = with_snapshots(world, 4, keep=LAST_TWO)
    key = f"{ACCOUNT}.{id}"

    class Twice:
        """While one run reads the listing for the first time, another runs to its end."""

        def __init__(self) -> None:
            self.is_first = True

        def __getattr__(self, name: str) -> Any:
            if name == "list" and self.is_first:
                self.is_first = False
                prune.prune_instance(world.app, key, world.now)
            return getattr(world.app.objects, name)

    with pytest.raises(StoreError):  # what the other one has written is written anew, guarded by what was read
        prune.prune_instance(dataclasses.replace(world.app, objects=Twice()), key, world.now)
    prune.prune_instance(world.app, key, world.now)

    assert len(listed(world, id)) == len(records(world)) == 2
    assert all_whole(world, id)


def test_who_moves_the_pointer_meanwhile_stops_the_run_before_anything_is_given_up(world: World) -> None:
    id = with_snapshots(world, 3, keep=Retention(last=1, hourly=0, daily=0, weekly=0))
    key = f"{ACCOUNT}.{id}"
    before = keys(world, "manifests")

    class FallsBack:
        """The pointer goes back to an older snapshot between the look at the records and the first write."""

        def __getattr__(self, name: str) -> Any:
            if name == "commit":
                loaded = load(world.app, key).instance
                older = records(world)[1]
                pointer = loaded.value.pointer.model_copy(
                    update={"id": older.id, "manifest_key": older.manifest_key, "version": older.version}
                )
                world.app.store.commit([loaded.becomes(loaded.value.having(pointer=pointer, epoch=9))])
            return getattr(world.app.store, name)

    with pytest.raises(StoreError):
        prune.prune_instance(dataclasses.replace(world.app, store=FallsBack()), key, world.now)

    assert keys(world, "manifests") == before
    assert [record.given_up_at for record in records(world)] == [None] * 3
    prune.prune_instance(world.app, key, world.now)
    assert {record.id for record in records(world)} == {records(world)[0].id, pointer_of(world, key)}


def pointer_of(world: World, key: str) -> str:
    pointer = load(world.app, key).instance.value.pointer
    assert pointer
    return pointer.id


def test_a_snapshot_that_waits_for_its_verification_is_kept_and_one_that_nobody_will_verify_goes(
    world: World,
) -> None:
    id = with_snapshots(world, 2)
    key = f"{ACCOUNT}.{id}"
    instance = load(world.app, key).instance.value
    known = view.listed(world.app, ACCOUNT, id)[0]
    assert known.is_current
    sealed = world.objects.get(records(world)[0].manifest_key)
    prefix = f"instances/{key}/manifests/"
    waits = f"{prefix}{instance.epoch}-99-0123456789ab.dm"
    orphan = f"{prefix}{instance.epoch - 1}-99-0123456789ab.dm"
    for name in (waits, orphan):
        world.objects.put(name, sealed)

    prune.prune_instance(world.app, key, world.now)

    assert waits in keys(world, "manifests")
    assert orphan not in keys(world, "manifests")
    assert all_whole(world, id)


def test_a_store_that_does_not_answer_removes_nothing_and_is_asked_again(world: World) -> None:
    id = with_snapshots(world, 3, keep=LAST_TWO)
    key = f"{ACCOUNT}.{id}"
    before = keys(world, "manifests")

    class Silent:
        def __getattr__(self, name: str) -> Any:
            raise ObjectStoreError("no answer")

    world.now += timedelta(hours=2)
    done = prune_snapshots.run(dataclasses.replace(world.app, objects=Silent()))

    assert (done["instances"], done["failed"]) == (1, 1)
    assert keys(world, "manifests") == before
    instance = load(world.app, key).instance.value
    assert instance.prune_due_at and instance.prune_due_at > world.now


def test_a_kept_snapshot_whose_needs_nobody_knows_stops_the_run_and_the_story_says_so(world: World) -> None:
    id = with_snapshots(world, 3, keep=LAST_TWO)
    newest = every_record(world)[0]
    record = SnapshotRecord.model_validate(newest.data)
    world.store.cas(newest, dump(record.model_copy(update={"packs": None})))
    world.objects.put(record.manifest_key, b"not a manifest")
    packs = keys(world, "packs")

    world.now += timedelta(hours=2)
    assert prune_snapshots.run(world.app)["failed"] == 1

    assert keys(world, "packs") == packs
    from common.views import instances

    assert "prune_failed" in [row.kind for row in instances.events(world.app, ACCOUNT, id)]


def test_what_an_old_snapshot_proved_need_not_be_proven_again(world: World) -> None:
    class GivesNoChecksum:
        """As a store does of what was uploaded in parts: what is new has to be read back."""

        def list(self, prefix: str) -> Any:
            return (dataclasses.replace(stored, md5=None) for stored in world.objects.list(prefix))

        def __getattr__(self, name: str) -> Any:
            return getattr(world.objects, name)

    world.app = dataclasses.replace(world.app, objects=GivesNoChecksum())
    id = running(world, snapshot_every_s=5, keep=Retention(last=1, hourly=0, daily=0, weekly=0))
    (world.workspace(id) / "stays").write_bytes(b"x" * 300_000)
    for number in range(3):
        write(world, id, f"number {number}\n")
        world.until(lambda number=number: len(listed(world, id)) > number, within_s=3600)
    prune.prune_instance(world.app, f"{ACCOUNT}.{id}", world.now)

    (left,) = records(world)

    assert set(left.packs or ()) == set(left.new_packs)
    key = manifest_key_of(world.app, load(world.app, f"{ACCOUNT}.{id}").instance.value)
    assert set(engine.load_manifest(world.objects, left.manifest_key, key).packs) == set(left.packs or ())


def test_a_terminated_instance_is_left_to_its_purge(world: World) -> None:
    id = with_snapshots(world, 3, keep=LAST_TWO)
    ask(world, id, "terminate")
    world.until(lambda: world.show(id).state is State.TERMINATED)

    world.pass_time(2 * world.timing.prune_every_s, step_s=60)
    assert len(keys(world, "manifests")) == 3
    world.pass_time(8 * DAY_S, step_s=3600)

    assert list(world.objects.list("instances/")) == []
    assert listed(world, id) == []
    assert Instance.model_validate(load(world.app, f"{ACCOUNT}.{id}").instance.doc.data).pointer is None
