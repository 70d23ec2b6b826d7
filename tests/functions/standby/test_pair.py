"""What a machine of a pair takes for whole, and what the record asks before the role moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.domain import standby as rules
from common.domain.host import HostPhase, HostRecord, Sync
from common.domain.instance import Phase
from common.domain.role import View
from common.domain.version import Version
from common.host.epoch import Epoch, Fenced
from tests.hand_cranked import ACCOUNT, World
from tests.standby_story import mirrored, of


def test_nothing_is_taken_while_a_snapshot_is_put_in_place(tmp_path: Path) -> None:
    """What came meanwhile would be overwritten by the snapshot, and counted as there."""
    candidate = Epoch(tmp_path, "gpu")
    candidate.hear(View(rev=1, epoch=2, writer="standby", standby="standby", cand="gpu"))
    candidate.fill(is_on=True)
    with pytest.raises(Fenced), candidate.taking(2, "standby"):
        pass

    candidate.restored(Version(epoch=1, seq=7))
    with candidate.taking(2, "standby") as done:
        done(1, True)
    assert candidate.read().is_whole


def test_a_whole_copy_stays_one_while_the_next_epoch_is_compared(tmp_path: Path) -> None:
    """Its GPU may die before that is over: the standby takes over with what it had, and says so."""
    mirror = Epoch(tmp_path, "standby")
    mirror.hear(View(rev=1, epoch=1, writer="gpu", mirror="standby", standby="standby"))
    with mirror.taking(1, "gpu") as done:
        done(9, True)
    mirror.hear(View(rev=2, epoch=2, writer="gpu", mirror="standby", standby="standby", is_draining=True))

    with mirror.taking(2, "gpu") as done:
        done(1, False)

    claim = mirror.seal()
    assert (claim.epoch, claim.version) == (2, Version(epoch=1, seq=9)), "no newer than what is whole"


def test_a_copy_of_a_life_that_was_restored_over_is_whole_only_when_compared(tmp_path: Path) -> None:
    mirror = Epoch(tmp_path, "standby")
    mirror.restored(Version(epoch=1, seq=9))
    mirror.hear(View(rev=2, epoch=3, writer="gpu", mirror="standby", standby="standby"))
    with mirror.taking(3, "gpu") as done:
        done(1, False)
    assert not mirror.read().is_whole

    with mirror.taking(3, "gpu") as done:
        done(2, True)
    assert mirror.read().is_whole


def test_a_snapshot_that_could_not_be_put_in_place_leaves_nothing_whole(tmp_path: Path) -> None:
    candidate = Epoch(tmp_path, "gpu")
    candidate.restored(Version(epoch=1, seq=7))
    candidate.fill(is_on=True)
    candidate.fill(is_on=False)
    assert not candidate.read().is_whole


@pytest.mark.parametrize("on_the_way", [0, 1])
def test_the_role_goes_back_only_when_nothing_is_on_its_way(world: World, on_the_way: int) -> None:
    id = mirrored(world)
    over = of(world, id).having(cand="gpu", standby="standby", epoch=5, phase=Phase.HANDOVER)
    common = {"account": ACCOUNT, "instance_id": id, "instance_key": over.key, "last_seen_at": world.now}
    sent = Sync(epoch=5, seq=3, is_whole=True, peer="gpu", backlog_files=on_the_way)
    frozen = HostRecord(label="standby", phase=HostPhase.FROZEN, fz="gpu", sync=sent, **common)
    taken = Sync(epoch=5, seq=3, is_whole=True, peer="standby")
    candidate = HostRecord(label="gpu", phase=HostPhase.READY, sync=taken, **common)

    assert rules.is_equal(over, frozen, candidate) is (on_the_way == 0)


@pytest.mark.parametrize("hears", [True, False])
def test_a_standby_that_does_not_hear_its_gpu_is_no_mirror_of_it(world: World, hears: bool) -> None:
    id = mirrored(world)
    instance = of(world, id)
    common = {"account": ACCOUNT, "instance_id": id, "instance_key": instance.key, "last_seen_at": world.now}
    whole = Sync(epoch=instance.epoch, seq=3, is_whole=True)
    sent, taken = (whole.model_copy(update={"peer": peer}) for peer in (instance.standby, instance.writer))
    gpu = HostRecord(label=instance.writer, phase=HostPhase.READY, sync=sent, **common)
    standby = HostRecord(
        label=instance.standby, phase=HostPhase.READY, sync=taken.model_copy(update={"hears": hears}), **common
    )

    assert rules.may_attach(instance.having(mirror=None), gpu, standby) is hears
