"""What a fenced machine alone had comes back to the user as `conflicts/<epoch>`, and nothing is overwritten by it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.adapters.s3 import S3
from common.domain.conflict import SAVE_MAX_S
from common.domain.host import Sync, is_last_save
from common.domain.instance import Phase, Protection, State
from common.domain.rental import RentalState
from common.host.livesync.standing import STANDING_FILE
from common.host.work import Work
from common.views import instances as view
from common.workflows import hibernate, mirror, prune, restore
from infra.demo.s3_server import S3Server
from tests.hand_cranked import ACCOUNT, World
from tests.standby_story import mirrored, of, states, wish, write


def cut_off(world: World, id: str) -> tuple[str, int]:
    """The GPU lives, and its standby does not see it any more: (its label, its epoch)."""
    before = of(world, id)
    world.unlinked.add(frozenset({before.writer or "", before.standby or ""}))
    return before.writer or "", before.epoch


def test_what_only_the_fenced_gpu_had_lies_beside_the_users_files(world: World) -> None:
    id = mirrored(world)
    write(world, id, "paper.txt", "on both\n")
    world.pass_time(5)
    _, epoch = cut_off(world, id)
    write(world, id, "paper.txt", "saved on the GPU alone\n")
    write(world, id, "new.txt", "only here\n")
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    write(world, id, "paper.txt", "went on on the standby\n")

    world.until(lambda: world.show(id).state is State.RUNNING)
    aside = world.workspace(id) / "conflicts" / str(epoch)
    world.until(lambda: (aside / "new.txt").exists())

    assert (world.workspace(id) / "paper.txt").read_text() == "went on on the standby\n"
    assert (aside / "paper.txt").read_text() == "saved on the GPU alone\n"
    assert sorted(path.name for path in aside.iterdir()) == ["new.txt", "paper.txt"]
    assert any(f"conflicts/{epoch}" in line.text for line in view.events(world.app, ACCOUNT, id))


def test_a_fenced_gpu_that_had_nothing_alone_leaves_no_conflict(world: World) -> None:
    id = mirrored(world)
    world.until(lambda: of(world, id).pointer is not None)
    _, epoch = cut_off(world, id)
    world.until(lambda: of(world, id).conflicts_of == epoch)

    assert of(world, id).conflicts == ()
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.pass_time(60)
    assert not (world.workspace(id) / "conflicts").exists()


def test_it_outlives_every_prune_until_a_snapshot_of_the_workspace_has_it(world: World) -> None:
    id = mirrored(world)
    _, epoch = cut_off(world, id)
    write(world, id, "new.txt", "only here\n")
    world.until(lambda: bool(of(world, id).conflicts))
    (kept,) = of(world, id).conflicts
    world.until(lambda: of(world, id).phase is Phase.UP)
    world.until(lambda: not of(world, id).conflicts, within_s=7200)

    shown = [listed.key for listed in world.objects.list(kept.manifest_key)]
    assert shown == [kept.manifest_key], "it went before the workspace's snapshots had it"
    label = of(world, id).writer or ""
    assert (world.machines[label].agent.workspace / "conflicts" / str(epoch) / "new.txt").exists()
    gone_s = 2 * world.timing.prune_every_s
    world.until(lambda: not list(world.objects.list(kept.manifest_key)), within_s=gone_s, step_s=5)


def test_a_silent_gpu_without_a_standby_gives_what_its_snapshots_lack_when_it_answers_again(
    tmp_path: Path, s3_on_loopback: S3Server, objects: S3
) -> None:
    world = World(tmp_path, s3_on_loopback, objects)
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    first = world.record(id).writer or ""
    world.until(lambda: world.record(id).pointer is not None, within_s=2400)
    write(world, id, "later.txt", "after the last snapshot\n")

    assert brought_by_the_held_gpu(world, id) == "after the last snapshot\n"
    world.until(lambda: first not in world.machines)
    world.close()


def test_what_only_a_standby_that_never_took_over_has_confirmed_is_saved_by_the_held_gpu(world: World) -> None:
    id = world.provision()
    world.until(lambda: of(world, id).standby in world.links)
    world.links[of(world, id).standby or ""].is_deaf = True  # and so is no mirror
    world.until(lambda: of(world, id).pointer is not None, within_s=2400)
    write(world, id, "later.txt", "after the last snapshot\n")
    world.pass_time(5)
    confirmed(world.writer(id).agent.home)

    assert brought_by_the_held_gpu(world, id) == "after the last snapshot\n"


def brought_by_the_held_gpu(world: World, id: str) -> str:
    """What `later.txt` holds beside the files: its GPU fell silent, was held, and answers again."""
    epoch, gpu, label = of(world, id).epoch, world.writer(id), of(world, id).writer or ""
    gpu.cut = True
    world.until(lambda: states(world, id).get(label) is RentalState.HELD)
    gpu.cut = False
    world.until(lambda: world.show(id).state is State.RUNNING)
    found = world.workspace(id) / "conflicts" / str(epoch) / "later.txt"
    world.until(found.exists)
    return found.read_text()


def confirmed(home: Path) -> None:
    """The sender says there that the standby has all that was ever written."""
    (home / STANDING_FILE).write_text(Sync(is_whole=True, lag_s=0.0).model_dump_json())
    later_ns = (home / STANDING_FILE).stat().st_mtime_ns + int(60e9)
    os.utime(home / STANDING_FILE, ns=(later_ns, later_ns))


def test_a_held_gpu_that_answers_and_never_saves_is_kept_for_ten_minutes_and_no_longer(world: World) -> None:
    id = mirrored(world)
    label, _ = cut_off(world, id)
    write(world, id, "new.txt", "only here\n")
    world.machines[label].agent.spawn = lambda _task, _home: _Never()  # type: ignore[assignment, return-value]
    world.until(lambda: states(world, id).get(label) is RentalState.HELD)
    world.until(lambda: of(world, id).is_covered)
    assert states(world, id)[label] is RentalState.HELD

    took_s = world.until(lambda: label not in world.machines, step_s=5)
    assert took_s <= SAVE_MAX_S + 120
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)


class _Never:
    """An engine child that hangs."""

    class order:  # noqa: N801
        id, kind, hurry = "save-0-0", "save", True

    class child:  # noqa: N801
        @staticmethod
        def wait(timeout: float) -> None:
            """The clock stands still for no hanging child."""

    def finished(self) -> bool:
        return False

    def progress(self) -> dict[str, object]:
        return {}

    def kill(self) -> None:
        """It ends with its machine."""


def test_a_save_that_fails_is_tried_three_times_and_then_said_to_be_lost(world: World) -> None:
    id = mirrored(world)
    label, epoch = cut_off(world, id)
    write(world, id, "new.txt", "only here\n")
    world.machines[label].agent.workspace.joinpath("new.txt").chmod(0o600)
    home = world.machines[label].agent.home
    (home / "engine-apart").write_text("a file where the engine wants a folder")

    world.until(lambda: of(world, id).conflicts_of == epoch)

    assert of(world, id).conflicts == ()
    assert any(line.kind == "conflict_lost" for line in view.events(world.app, ACCOUNT, id))
    assert world.now - of(world, id).at < timedelta(minutes=5)


def sealed_in_vain(world: World) -> tuple[str, str, int]:
    """Cut off from everybody, it seals; meanwhile the record drains it, and then it hears of that: (id, its label,
    the epoch)."""
    id = mirrored(world)
    label, epoch = of(world, id).standby or "", of(world, id).epoch
    seal_in_vain(world, id)
    return id, label, epoch


def seal_in_vain(world: World, id: str) -> None:
    label, epoch = of(world, id).standby or "", of(world, id).epoch
    standby = world.machines[label]
    standby.cut = True
    world.until(lambda: standby.agent.epoch.read().sealed == epoch)
    (standby.agent.workspace / "there.txt").write_text("written on the standby, which nobody heard\n")
    wish(
        world,
        id,
        lambda loaded: mirror.request_standby(world.app, loaded, wanted=False, now=world.now),
    )
    world.until(lambda: of(world, id).epoch > epoch)
    standby.cut = False


def test_what_was_done_on_a_standby_whose_claim_was_refused_comes_to_the_gpu(world: World) -> None:
    id, label, epoch = sealed_in_vain(world)
    found = world.workspace(id) / "conflicts" / f"{epoch}-standby" / "there.txt"

    world.until(found.exists)

    assert found.read_text() == "written on the standby, which nobody heard\n"
    assert [path.name for path in found.parent.iterdir()] == ["there.txt"]
    world.until(lambda: label not in world.machines)


def test_nothing_overwrites_it_while_it_cannot_be_saved(world: World) -> None:
    id, label, epoch = sealed_in_vain(world)
    world.access.is_down = True
    write(world, id, "there.txt", "of the GPU\n")
    world.pass_time(60)
    standby = world.machines[label].agent
    assert standby.epoch.read().refused == epoch
    assert (standby.workspace / "there.txt").read_text() == "written on the standby, which nobody heard\n"

    world.access.is_down = False
    world.until(lambda: of(world, id).refusals_of == epoch)
    world.until(lambda: label not in world.machines)


def held_back(world: World, label: str) -> Callable[[], None]:
    """That machine begins no save before the returned function is called."""
    agent = world.machines[label].agent
    spawn = agent.spawn
    agent.spawn = lambda task, home: _Never() if task["kind"] == "save" else spawn(task, home)  # type: ignore[assignment, return-value]

    def goes_on() -> None:
        agent.spawn, agent.work = spawn, None

    return goes_on


def hibernates(world: World, id: str) -> None:
    wish(world, id, lambda loaded: hibernate.request(world.app, loaded, reason="asked", now=world.now))


def test_a_hibernation_waits_for_what_only_the_held_gpu_has(world: World) -> None:
    id = mirrored(world)
    label, epoch = cut_off(world, id)
    goes_on = held_back(world, label)
    write(world, id, "new.txt", "only here\n")
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    hibernates(world, id)
    world.pass_time(60)
    assert of(world, id).phase is Phase.FREEZING
    assert states(world, id)[label] is RentalState.HELD
    goes_on()

    world.until(lambda: world.show(id).state is State.HIBERNATED)

    assert [each.epoch for each in of(world, id).conflicts] == [epoch]
    world.until(lambda: label not in world.machines)


def test_a_start_that_is_called_off_waits_for_it_too_and_is_not_in_the_way_of_the_next(
    tmp_path: Path, s3_on_loopback: S3Server, objects: S3
) -> None:
    world = World(tmp_path, s3_on_loopback, objects)
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    label, epoch = world.record(id).writer or "", world.record(id).epoch
    write(world, id, "later.txt", "in no snapshot\n")
    goes_on = held_back(world, label)
    world.machines[label].cut = True
    world.until(lambda: states(world, id).get(label) is RentalState.HELD)
    world.machines[label].cut = False
    world.until(lambda: world.machines[label].agent.work is not None)
    hibernates(world, id)
    assert of(world, id).phase is Phase.DOWN
    world.pass_time(30)
    assert states(world, id)[label] is RentalState.HELD
    wish(world, id, lambda loaded: restore.request_wake(world.app, loaded, world.now))
    assert of(world, id).phase is Phase.BOOT
    goes_on()

    world.until(lambda: world.show(id).state is State.RUNNING)
    found = world.workspace(id) / "conflicts" / str(epoch) / "later.txt"
    world.until(found.exists)
    assert found.read_text() == "in no snapshot\n"
    world.close()


def test_what_a_standby_saved_outlives_a_prune_before_it_is_judged(world: World) -> None:
    id, label, epoch = sealed_in_vain(world)
    standby = world.machines[label]
    world.until(lambda: standby.agent.work is not None and standby.agent.work.order.kind == "save")
    standby.cut = True
    world.pass_time(5)
    last = standby.agent.memory.last
    assert last is not None and is_last_save(last, epoch), "it has not saved"
    prune.prune_instance(world.app, f"{ACCOUNT}.{id}", world.now)
    standby.cut = False

    world.until((world.workspace(id) / "conflicts" / f"{epoch}-standby" / "there.txt").exists)


def test_what_was_done_on_a_standby_that_a_hibernation_refused_is_kept_while_it_sleeps(world: World) -> None:
    id = mirrored(world)
    label, epoch = of(world, id).standby or "", of(world, id).epoch
    standby = world.machines[label]
    standby.cut = True
    hibernates(world, id)
    world.until(lambda: standby.agent.epoch.read().sealed == epoch)
    (standby.agent.workspace / "there.txt").write_text("written on the standby, which nobody heard\n")
    world.until(lambda: world.show(id).state is State.HIBERNATED)
    standby.cut = False

    world.until(lambda: of(world, id).refusals_of == epoch)

    assert [each.epoch for each in of(world, id).conflicts] == [epoch]
    assert of(world, id).phase is Phase.DOWN


def test_a_save_that_does_not_stand_up_to_its_verification_is_made_again(world: World) -> None:
    id = mirrored(world)
    label, epoch = cut_off(world, id)
    goes_on = held_back(world, label)
    write(world, id, "new.txt", "only here\n")
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    world.until(lambda: world.machines[label].agent.work is not None)
    goes_on()
    agent = world.machines[label].agent
    spawn, spawned = agent.spawn, []

    def spoilt(task: dict[str, Any], home: Path) -> Work:
        """The first one is of another epoch than it was asked for."""
        spawned.append(task["order"]["id"])
        args = task["args"] | ({"of": 99} if len(spawned) == 1 else {})
        return spawn({**task, "args": args}, home)

    agent.spawn = spoilt
    world.until(lambda: bool(of(world, id).conflicts))

    assert spawned == [f"save-{epoch}-0", f"save-{epoch}-1"]
    assert not [line for line in view.events(world.app, ACCOUNT, id) if line.kind == "conflict_lost"]


def test_what_a_standby_saved_is_overwritten_there_only_once_it_stands_up_to_its_verification(world: World) -> None:
    id = mirrored(world)
    label = of(world, id).standby or ""
    agent = world.machines[label].agent
    spawn, spawned = agent.spawn, []

    def spoilt(task: dict[str, Any], home: Path) -> Work:
        """The first save is of another epoch than it was asked for."""
        if task["kind"] != "save":
            return spawn(task, home)
        spawned.append((task["order"]["id"], agent.epoch.read().refused))
        args = task["args"] | ({"of": 99} if len(spawned) == 1 else {})
        return spawn({**task, "args": args}, home)

    agent.spawn = spoilt
    epoch = of(world, id).epoch
    seal_in_vain(world, id)
    found = world.workspace(id) / "conflicts" / f"{epoch}-standby" / "there.txt"

    world.until(found.exists)

    assert found.read_text() == "written on the standby, which nobody heard\n"
    assert spawned == [(f"save-{epoch}-0", epoch), (f"save-{epoch}-1", epoch)]
    assert not [line for line in view.events(world.app, ACCOUNT, id) if line.kind == "conflict_lost"]


def test_a_save_that_counted_on_a_pack_that_is_gone_is_made_anew_and_counts_on_nothing(world: World) -> None:
    id = mirrored(world)
    write(world, id, "old.txt", "the same words\n" * 100)
    world.until(lambda: of(world, id).pointer is not None and of(world, id).pointer.files > 0)
    label, epoch = cut_off(world, id)
    goes_on = held_back(world, label)
    write(world, id, "new.txt", "the same words\n" * 100)  # the pointer's pack holds it: it is not sent again
    world.until(lambda: world.show(id).state is State.ON_STANDBY)
    goes_on()
    agent = world.machines[label].agent
    spawn, spawned = agent.spawn, []

    def while_packs_vanish(task: dict[str, Any], home: Path) -> Work:
        spawned.append(task["order"]["id"])
        if len(spawned) == 1:
            rows = world.objects.list(f"instances/{ACCOUNT}.{id}/packs/")
            world.objects.delete([row.key for row in rows])
        return spawn(task, home)

    agent.spawn = while_packs_vanish
    world.until(lambda: bool(of(world, id).conflicts), within_s=600)

    (kept,) = of(world, id).conflicts
    assert spawned == [f"save-{epoch}-0", f"save-{epoch}-1"]
    assert kept.files == 1
    assert not [line for line in view.events(world.app, ACCOUNT, id) if line.kind == "conflict_lost"]


def test_what_a_gpu_was_brought_is_brought_again_when_the_standby_takes_over(world: World) -> None:
    id = mirrored(world)
    cut_off(world, id)
    write(world, id, "new.txt", "only here\n")
    world.until(lambda: any(each.brought is not None for each in of(world, id).conflicts))
    first = of(world, id).writer
    cut_off(world, id)
    world.until(lambda: world.show(id).state is State.ON_STANDBY)

    assert [each.brought for each in of(world, id).conflicts] == [None]
    world.until(lambda: any(each.brought is not None for each in of(world, id).conflicts))
    assert of(world, id).writer != first


def test_a_gpu_that_was_settled_for_long_is_waited_for_as_well(world: World) -> None:
    id = mirrored(world)
    world.pass_time(3 * world.timing.silent_after_s)
    label, _ = cut_off(world, id)
    goes_on = held_back(world, label)
    write(world, id, "new.txt", "only here\n")
    world.machines[label].cut = True
    world.until(lambda: of(world, id).is_on_standby and of(world, id).is_covered)
    world.pass_time(10)

    assert states(world, id)[label] is RentalState.HELD
    world.machines[label].cut = False
    goes_on()
    world.until(lambda: bool(of(world, id).conflicts))
