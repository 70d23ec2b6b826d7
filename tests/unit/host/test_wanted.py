"""Somebody on the machine names a path, and the engine fetches it next."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from common.errors import NotFound
from common.host import repository
from common.host.wanted import NAME, PATHS_MAX, READ_BYTES_MAX, Wishes, want


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def wishes(tmp_path: Path, root: Path) -> Wishes:
    made = Wishes(tmp_path, root)
    made.open()
    return made


def test_a_path_that_is_asked_for_reaches_the_engine_in_the_order_of_asking(
    tmp_path: Path, root: Path, wishes: Wishes
) -> None:
    assert list(wishes()) == []
    want(tmp_path, [root / "a/b", root / "c"], wait_s=0)
    want(tmp_path, [root / os.fsdecode(b"not utf-8 \xff")], wait_s=0)

    assert list(wishes()) == [b"a/b", b"c", b"not utf-8 \xff"]


def test_who_asks_waits_until_the_file_is_there(tmp_path: Path, root: Path, wishes: Wishes) -> None:
    threading.Timer(0.2, (root / "late").touch).start()
    began = time.monotonic()

    assert want(tmp_path, [root / "late"], wait_s=20) == []
    assert 0.1 < time.monotonic() - began < 5
    assert want(tmp_path, [root / "never"], wait_s=0.1) == [root / "never"]


def test_the_end_of_the_restore_ends_the_wait(tmp_path: Path, root: Path, wishes: Wishes) -> None:
    threading.Timer(0.2, wishes.close).start()

    assert want(tmp_path, [root / "not in the snapshot"], wait_s=60) == [root / "not in the snapshot"]


def test_nothing_outside_of_the_workspace_is_asked_for(tmp_path: Path, root: Path, wishes: Wishes) -> None:
    for path in (tmp_path / "elsewhere", root / "../elsewhere", Path("/etc/passwd")):
        with pytest.raises(NotFound):
            want(tmp_path, [path], wait_s=0)

    assert list(wishes()) == []


def test_without_a_restore_what_is_there_is_there_and_what_is_not_is_an_error(tmp_path: Path, root: Path) -> None:
    (root / "here").touch()

    assert want(tmp_path, [root / "here"], wait_s=1) == []
    with pytest.raises(NotFound):
        want(tmp_path, [root / "missing"], wait_s=1)
    assert list(Wishes(tmp_path, root)()) == []


def test_rubbish_in_the_file_costs_no_memory_and_no_restore(tmp_path: Path, wishes: Wishes) -> None:
    with (tmp_path / NAME).open("ab") as file:
        file.write(os.urandom(3 << 20))
        file.write(b"x\0" * 5000)

    found = wishes()

    assert len(found) <= PATHS_MAX
    assert sum(map(len, found)) <= READ_BYTES_MAX


def test_the_command_says_what_is_missing_by_its_exit_code(
    tmp_path: Path, root: Path, wishes: Wishes, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "here").touch()
    words = ["--agent", str(tmp_path), "--json"]

    assert repository.main(["want", str(root / "here"), *words]) == 0
    assert repository.main(["want", str(root / "missing"), "--wait-s", "0.1", *words]) == 5
    assert repository.main(["want", str(root / "missing"), "--wait-s", "0", *words]) == 0
    assert "missing" in capsys.readouterr().out
