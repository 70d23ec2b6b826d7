"""The role on disk: what one program writes the others obey, also when it is killed at any moment."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.domain.role import View
from common.domain.version import Version
from common.host.epoch import FILE, Epoch, Fenced

GPU, ME = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
MIRROR = View(rev=1, epoch=3, writer=GPU, mirror=ME, standby=ME)


def attached(folder: Path) -> Epoch:
    epoch = Epoch(folder, ME)
    epoch.hear(MIRROR)
    epoch.restored(Version(epoch=3, seq=1))
    return epoch


def test_a_machine_that_never_heard_anything_takes_nothing_and_seals_nothing(tmp_path: Path) -> None:
    epoch = Epoch(tmp_path, ME)

    with pytest.raises(Fenced), epoch.taking(0, GPU):
        pytest.fail("a frame was taken")
    with pytest.raises(ValueError, match="no mirror"):
        epoch.seal()


def test_a_seal_is_obeyed_by_every_program_of_the_machine_and_survives_them(tmp_path: Path) -> None:
    attached(tmp_path)
    imports = "import pathlib, sys; from common.host.epoch import Epoch"
    words = f"{imports}; Epoch(pathlib.Path(sys.argv[1]), sys.argv[2]).seal()"
    subprocess.run([sys.executable, "-c", words, str(tmp_path), ME], check=True)

    later = Epoch(tmp_path, ME)
    assert later.read().claim is not None
    with pytest.raises(Fenced), later.taking(3, GPU):
        pytest.fail("a frame was taken after the seal")


def test_a_seal_falls_between_two_commits_and_never_into_one(tmp_path: Path) -> None:
    epoch = attached(tmp_path)
    claims = []
    with epoch.taking(3, GPU) as done:
        sealing = threading.Thread(target=lambda: claims.append(Epoch(tmp_path, ME).seal()))
        sealing.start()
        time.sleep(0.1)
        assert not claims, "it sealed while a commit was under way"
        done(2, True)
    sealing.join(10)

    assert claims[0].version == Version(epoch=3, seq=2)


def test_what_a_killed_write_left_is_not_read(tmp_path: Path) -> None:
    epoch = attached(tmp_path)
    (tmp_path / (FILE + ".new")).write_text('{"label": ')

    assert epoch.read().version == Version(epoch=3, seq=1)
    assert epoch.seal().epoch == 3


def test_a_claim_whose_content_is_put_right_by_a_snapshot_is_of_that_version(tmp_path: Path) -> None:
    epoch = attached(tmp_path)
    epoch.seal()

    role = epoch.restored(Version(epoch=3, seq=9))

    assert role.claim is not None
    assert role.claim.version.seq == 9
    assert role.sealed == 3
