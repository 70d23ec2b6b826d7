"""restore(take(tree)) == tree, whatever stands in it."""

# Names here are bytes, which a Path cannot hold.
# ruff: noqa: PTH101, PTH102, PTH118, PTH211

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import SnapshotError
from tests.snapshots_fixtures import Box, tree

ZOO = [
    b"plain",
    b"new\nline",
    b"-rf",
    b"x" * 255,
    b"caf\xe9",
    "Café".encode(),
    "Cafe\u0301".encode(),
    b" ",
    b"*?[",
    b"\xff",
]
NAMES = st.sampled_from(ZOO) | st.binary(min_size=1, max_size=12).filter(
    lambda name: name not in (b".", b"..") and not set(name) & set(b"/\0")
)
BULK = {"zeros": b"\0" * 5000, "text": b"ab" * 200_000, "noise": os.urandom(300_000)}
CONTENTS = st.binary(max_size=200) | st.sampled_from(sorted(BULK))
TIMES = st.integers(0, 4_000_000_000_000_000_000)
LEAVES = st.one_of(
    st.tuples(st.just("file"), CONTENTS, st.sampled_from([0o644, 0o600, 0o4755, 0o444, 0]), TIMES),
    st.tuples(st.just("link"), st.sampled_from([b"nowhere", b"/etc/passwd", b"..", b".", b"\xfe"]), TIMES),
    st.tuples(st.just("holes"), st.integers(0, 3), TIMES),
    st.tuples(st.just("another name")),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda below: st.dictionaries(NAMES, LEAVES | below, max_size=4),
    max_leaves=6,
)


def build(root: bytes, content: dict, files: list[bytes]) -> None:
    for name, leaf in content.items():
        path = os.path.join(root, name)
        if isinstance(leaf, dict):
            os.mkdir(path)
            build(path, leaf, files)
            os.utime(path, ns=(1, 12345678901))
            continue
        match leaf:
            case ("file", data, mode, mtime):
                with open(path, "wb") as file:
                    file.write(BULK[data] if isinstance(data, str) else data)
                os.chmod(path, mode)
                os.utime(path, ns=(mtime, mtime))
                files.append(path)
            case ("link", target, mtime):
                os.symlink(target, path)
                os.utime(path, ns=(mtime, mtime), follow_symlinks=False)
            case ("holes", places, mtime):
                with open(path, "wb") as file:
                    for place in range(places):
                        file.seek((place * 2 + 1) << 20)
                        file.write(b"data")
                    file.truncate(10 << 20)
                os.utime(path, ns=(mtime, mtime))
            case _ if files:
                os.link(files[-1], path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=TREES, second=TREES)
def test_every_tree_comes_back_as_it_was(box: Box, first: dict, second: dict) -> None:
    with tempfile.TemporaryDirectory(dir=box.base) as folder:
        here = replace(box, base=Path(folder))
        here.root.mkdir()
        here.copy.mkdir()
        build(bytes(here.root), first, [])
        build(bytes(here.copy), second, [])

        here.restore(here.take().manifest_key)

        assert tree(here.copy) == tree(here.root)


def test_holes_stay_holes(box: Box) -> None:
    with (box.root / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(128 << 20)

    taken = box.take()
    box.restore(taken.manifest_key)

    assert tree(box.copy) == tree(box.root)
    assert (box.copy / "sparse").stat().st_blocks * 512 < 1 << 20
    assert taken.new_bytes < 1 << 20


def test_a_large_file_is_stored_in_pieces_that_an_edit_does_not_move(box: Box) -> None:
    (box.root / "model").write_bytes(os.urandom(20 << 20))
    first = box.take()
    with (box.root / "model").open("r+b") as file:
        file.seek(9 << 20)
        file.write(b"edited")

    second = box.take(2, first.manifest)
    box.restore(second.manifest_key)

    assert second.new_bytes == 4 << 20
    assert tree(box.copy) == tree(box.root)


def test_an_untouched_workspace_uploads_no_pack(box: Box) -> None:
    (box.root / "a").write_bytes(b"a")
    (box.root / "b").write_bytes(os.urandom(1 << 20))
    first = box.take()

    second = box.take(2, first.manifest)

    assert second.packs_new == ()
    assert second.new_bytes == 0
    assert box.verify(second.manifest_key, tuple(first.manifest.packs)).proof == "known"


def test_a_restored_machine_takes_its_next_snapshot_without_sending_what_it_got(box: Box) -> None:
    (box.root / "a").write_bytes(b"a" * 1000)
    (box.root / "b").write_bytes(os.urandom(1 << 20))
    first = box.restore(box.take().manifest_key).manifest
    (box.copy / "c").write_bytes(b"new")

    second = box.take(2, first, root=box.copy, state_dir=box.base / "other state")

    assert second.new_bytes <= 1000 + 3


def test_an_edit_that_hides_its_time_is_found(box: Box) -> None:
    path = box.root / "a"
    path.write_bytes(b"before")
    os.utime(path, ns=(5, 5))
    first = box.take()
    path.write_bytes(b"after!")
    os.utime(path, ns=(5, 5))

    second = box.take(2, first.manifest)
    box.restore(second.manifest_key)

    assert (box.copy / "a").read_bytes() == b"after!"


def test_what_no_snapshot_holds_is_reported(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(box.root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(box.root)  # a socket's path may have 108 bytes only
        server.bind("socket")
        taken = box.take()

    assert taken.skipped == (("pipe", "fifo"), ("socket", "socket"))


def test_the_state_directory_may_not_lie_in_the_workspace(box: Box) -> None:
    with pytest.raises(SnapshotError):
        box.take(state_dir=box.root / "state")


def test_a_file_that_never_rests_is_marked_torn(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    log = box.root / "log"
    log.write_bytes(b"line\n")
    (box.root / "quiet").write_bytes(b"quiet")
    read = os.pread

    def somebody_writes_meanwhile(fd: int, length: int, at: int) -> bytes:
        piece = read(fd, length, at)
        if piece.startswith(b"line"):
            with log.open("ab") as file:
                file.write(b"line\n")
        return piece

    monkeypatch.setattr(os, "pread", somebody_writes_meanwhile)
    taken = box.take()
    monkeypatch.undo()

    assert taken.torn == ("log",)
    assert box.verify(taken.manifest_key).torn == ("log",)
    box.restore(taken.manifest_key)
    assert (box.copy / "log").read_bytes() == b"line\n" * 3
