"""The user fills the disk that the agent's folder lies on: nothing of ours ends, and nothing is promised in vain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.domain.host import Order, Sync, Wanted
from common.domain.role import View
from common.domain.version import Version
from common.host.agent import HostPhase
from common.host.atomic import BALLAST, BALLAST_BYTES, BALLAST_FROM_BYTES
from common.host.children import Children
from common.host.epoch import Epoch
from common.host.livesync.standing import read_standing, write_standing
from common.host.memory import remembered
from common.host.work import start_work
from infra.demo.s3_server import s3_server
from tests.snapshots_fixtures import Box, endpoint, s3
from tests.unit.host.test_agent import ORDER_ARGS, PLACE, Host, reply, serving

DISK_BYTES = 4 * BALLAST_FROM_BYTES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def host(disk: Path) -> Host:
    """Its home is on the small disk."""
    return serving(disk)


def fill(disk: Path, *, ballast: bool = False) -> None:
    """To the last byte; `ballast` = what that has kept, too."""
    if ballast:
        (disk / BALLAST).unlink(missing_ok=True)
    for name, step in (("checkpoint", 1 << 16), ("more", 1)):
        with contextlib.suppress(OSError), open(disk / name, "ab", buffering=0) as file:
            while True:
                file.write(bytes(step))


def make_room(disk: Path) -> None:
    for name in ("checkpoint", "more"):
        (disk / name).unlink()


def test_what_is_to_be_remembered_gets_the_room_of_the_ballast(host: Host, disk: Path) -> None:
    assert (disk / BALLAST).stat().st_blocks * 512 >= BALLAST_BYTES
    fill(disk)

    host.control.reply = reply(token="renewed", rev=7)
    host.pass_time(61)

    assert (remembered(disk).token, remembered(disk).rev) == ("renewed", 7)
    assert not (disk / BALLAST).exists()
    make_room(disk)
    host.pass_time(1)
    assert (disk / BALLAST).exists()


def test_beyond_the_ballast_the_agent_lives_and_writes_it_down_when_there_is_room(host: Host, disk: Path) -> None:
    fill(disk, ballast=True)
    host.control.reply = reply(token="renewed")
    before = len(host.control.heard)

    host.pass_time(125)
    host.start()
    host.pass_time(3)

    assert len(host.control.heard) - before == 3
    assert host.control.heard[-1].disk["free_bytes"] == 0
    assert remembered(disk).token == "t"
    make_room(disk)
    host.pass_time(1)
    assert remembered(disk).token == "renewed"


def test_a_freeze_that_cannot_be_written_down_is_not_promised_and_holds_nobody_still(host: Host, disk: Path) -> None:
    fill(disk, ballast=True)
    host.control.reply = reply(phase_wanted=Wanted.FREEZE, fz="nonce")

    host.pass_time(70)

    assert not host.writers.frozen
    assert (host.control.heard[-1].phase, host.control.heard[-1].fz) == (HostPhase.SERVING, None)
    make_room(disk)
    host.pass_time(70)
    assert (host.control.heard[-1].phase, host.control.heard[-1].fz) == (HostPhase.FROZEN, "nonce")
    assert remembered(disk).frozen


def test_an_order_that_cannot_be_begun_or_written_down_has_failed(host: Host, disk: Path) -> None:
    fill(disk, ballast=True)
    host.agent.spawn = start_work
    order = Order(id="snapshot-1", kind="snapshot", args=ORDER_ARGS)
    host.control.reply = reply(orders=[order], storage_credentials=PLACE)

    host.pass_time(62)

    last = host.control.heard[-1].progress.last
    assert last and (last.id, last.ok, last.error) == ("snapshot-1", False, "disk_full")

    host.agent.spawn = host._spawn
    order = Order(id="restore-2", kind="restore", args=ORDER_ARGS)
    host.control.reply = reply(epoch=2, orders=[order], storage_credentials=PLACE)
    host.pass_time(62)

    last = host.control.heard[-1].progress.last
    assert last and (last.id, last.error) == ("restore-2", "disk_full")
    assert host.control.heard[-1].epoch == 1


def test_who_is_cut_off_with_a_full_disk_tries_to_save_and_stops_itself_too(host: Host, disk: Path) -> None:
    host.control.reply = reply(dead_man_s=600)
    host.pass_time(61)
    fill(disk, ballast=True)
    host.agent.spawn = start_work
    host.control.answers = False

    host.pass_time(700)

    assert host.stopped == 1


def test_a_full_disk_does_not_keep_a_machine_from_stopping(host: Host, disk: Path) -> None:
    fill(disk, ballast=True)
    host.control.reply = reply(rev=9, phase_wanted=Wanted.STOP)

    host.pass_time(61)

    assert host.agent.phase is HostPhase.STOPPED


def test_a_program_that_cannot_be_written_down_is_started_later(disk: Path) -> None:
    now_s = [0.0]
    children = Children(disk, lambda: now_s[0])
    fill(disk)
    children.want({"sleeper": ["sleep", "600"]})
    assert not children.pids()

    make_room(disk)
    now_s[0] += 1.0
    children.tend()
    assert children.pids()

    children.want({})
    while not children.is_idle:
        now_s[0] += 1.0
        children.tend()


def test_a_seal_gets_the_room_of_the_ballast(disk: Path) -> None:
    (disk / BALLAST).write_bytes(bytes(BALLAST_BYTES))
    epoch = Epoch(disk, "standby")
    epoch.hear(View(rev=1, epoch=3, writer="gpu", standby="standby", mirror="standby"))
    with epoch.taking(3, "gpu") as done:
        done(5, True)
    fill(disk)

    assert epoch.seal().version == Version(epoch=3, seq=5)


def test_an_end_of_the_live_sync_tells_how_it_stands_when_there_is_room(disk: Path) -> None:
    async def run() -> None:
        told = asyncio.ensure_future(write_standing(disk, lambda: Sync(seq=7)))
        await asyncio.sleep(0.1)
        assert not told.done()
        make_room(disk)
        while read_standing(disk).seq != 7:
            await asyncio.sleep(0.05)
        told.cancel()

    fill(disk)
    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_fills_the_disk_is_in_a_snapshot_all_the_same(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as server:
        box = Box(disk, endpoint(server), s3(server))
        box.root.mkdir()
        (box.root / "kept").write_bytes(os.urandom(100_000))
        first = box.take()
        fill(box.root)

        second = box.take(2, first.manifest)
        box.restore(second.manifest_key, root=tmp_path / "copy", state_dir=tmp_path / "state")

        assert (tmp_path / "copy/checkpoint").stat().st_size > DISK_BYTES // 2
