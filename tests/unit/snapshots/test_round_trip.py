"""restore(take(tree)) == tree, whatever stands in it."""

# Names here are bytes, which a Path cannot hold.
# ruff: noqa: PTH101, PTH102, PTH118, PTH211

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import SnapshotError
from common.snapshots import chunk, fetching, packing, stage, workers
from common.snapshots.chunk import COARSE, FINE, FINE_BELOW_BYTES, LONG, Grain
from tests.snapshots_fixtures import Box, mapped, tree

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


@pytest.mark.parametrize(("size", "grain"), [(20 << 20, FINE), (FINE_BELOW_BYTES, COARSE)])
def test_an_edit_of_a_large_file_costs_a_chunk_or_two(box: Box, size: int, grain: Grain) -> None:
    (box.root / "model").write_bytes(os.urandom(size))
    first = box.take()
    with (box.root / "model").open("r+b") as file:
        file.seek(9 << 20)
        file.write(b"edited")

    second = box.take(2, first.manifest)
    box.restore(second.manifest_key)

    assert 0 < second.new_bytes <= 2 * grain[2]
    assert tree(box.copy) == tree(box.root)


@pytest.mark.parametrize(("size", "grain"), [(20 << 20, FINE), (FINE_BELOW_BYTES, COARSE)])
def test_bytes_inserted_into_a_large_file_cost_a_chunk_or_two(box: Box, size: int, grain: Grain) -> None:
    content = os.urandom(size)
    (box.root / "table").write_bytes(content)
    first = box.take()
    (box.root / "table").write_bytes(content[: 9 << 20] + b"inserted" * 100 + content[9 << 20 :])

    second = box.take(2, first.manifest)
    box.restore(second.manifest_key)

    assert 0 < second.new_bytes <= 3 * grain[2]
    assert tree(box.copy) == tree(box.root)


def test_a_very_long_file_is_cut_less_finely(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "LONG_ABOVE_BYTES", 30 << 20)
    content = bytearray(os.urandom(40 << 20))
    (box.root / "archive").write_bytes(content)
    first = box.take()
    content[20 << 20 : 20 << 20] = b"inserted"
    (box.root / "archive").write_bytes(content)

    second = box.take(2, first.manifest)
    box.restore(second.manifest_key)

    least, _, most = LONG
    assert sum(each.plain < least for each in first.manifest.chunks.values()) <= 1, "only the last may be shorter"
    assert 0 < second.new_bytes <= 3 * most
    assert tree(box.copy) == tree(box.root)


def test_a_small_first_snapshot_is_spread_over_packs_and_the_next_is_one(box: Box) -> None:
    def write(name: str) -> None:
        for number in range(40):
            (box.root / f"{name}{number}").write_bytes(os.urandom(100_000))

    write("first")
    first = box.take()
    write("second")
    second = box.take(2, first.manifest)

    assert len(first.packs_new) == 4
    assert len(second.packs_new) == 1
    box.restore(second.manifest_key)
    assert tree(box.copy) == tree(box.root)


def test_an_untouched_workspace_uploads_no_pack(box: Box) -> None:
    (box.root / "a").write_bytes(b"a")
    (box.root / "b").write_bytes(os.urandom(1 << 20))
    first = box.take()

    second = box.take(2, first.manifest)

    assert second.packs_new == ()
    assert second.new_bytes == 0
    assert box.take(3, lambda: second.manifest).packs_new == ()
    assert box.verify(second.manifest_key, tuple(first.manifest.packs)).proof == "md5"


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


def test_what_is_stored_to_mapped_memory_between_two_snapshots_is_in_the_second(box: Box) -> None:
    with mapped(box.root / "state") as memory:
        first = box.take()
        memory[:4] = b"more"  # to the page that was dirty when the first one read it

        second = box.take(2, first.manifest)
        box.restore(second.manifest_key)

        assert (box.copy / "state").read_bytes()[:4] == b"more"


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


def writing(program: str, path: Path) -> subprocess.Popen[bytes]:
    """Another process that never leaves the file alone; it has begun when this returns."""
    words = [sys.executable, "-c", f"import sys, os, time\npath = sys.argv[1]\n{textwrap.dedent(program)}", str(path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def test_a_file_that_never_rests_is_marked_torn(box: Box) -> None:
    path = box.root / "weights"
    path.write_bytes(os.urandom(96 << 20))
    (box.root / "quiet").write_bytes(b"quiet")
    program = """
        if os.geteuid() == 0:
            os.nice(-15)  # a busy machine must not keep it from writing for as long as one reading takes
        fd = os.open(path, os.O_WRONLY)
        print("begun", flush=True)
        while True:
            os.pwrite(fd, os.urandom(100), int.from_bytes(os.urandom(3), "big") * 3)
    """
    with writing(program, path) as writer:
        taken = box.take()
        writer.kill()

    assert taken.torn == ("weights",)
    assert box.verify(taken.manifest_key).torn == ("weights",)
    box.restore(taken.manifest_key)
    assert (box.copy / "weights").stat().st_size == 96 << 20
    assert box.take(2, taken.manifest).torn == ()


def test_a_log_that_only_grows_is_whole_as_it_was(box: Box) -> None:
    path = box.root / "log"
    path.write_bytes(b"a line of the log\n" * 200_000)
    program = """
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        print("begun", flush=True)
        while True:
            os.write(fd, b"a line of the log\\n")
    """
    with writing(program, path) as writer:
        taken = box.take()
        writer.kill()

    assert taken.torn == ()
    box.restore(taken.manifest_key)
    assert set((box.copy / "log").read_bytes().splitlines()[:-1]) == {b"a line of the log"}


def test_modes_owners_times_and_attributes_come_back(box: Box) -> None:
    path = box.root / "file"
    path.write_bytes(b"x")
    os.setxattr(path, "user.note", b"\0\xff")
    os.setxattr(box.root, "user.root", b"1")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
        os.chmod(path, 0o4755)

    box.restore(box.take().manifest_key)

    assert os.getxattr(box.copy / "file", "user.note") == b"\0\xff"
    assert os.getxattr(box.copy, "user.root") == b"1"
    there, here = path.stat(), (box.copy / "file").stat()
    assert (here.st_uid, here.st_gid, here.st_mode) == (there.st_uid, there.st_gid, there.st_mode)


def test_only_the_chunks_that_differ_are_fetched(box: Box) -> None:
    content = os.urandom(80 << 20)
    (box.root / "model").write_bytes(content)
    key = box.take().manifest_key
    box.restore(key)
    with (box.copy / "model").open("r+b") as file:
        file.seek(50 << 20)
        file.write(b"damaged by somebody")

    again = box.restore(key)

    assert again.bytes_written <= 8 << 20
    assert again.bytes_fetched <= 80 << 20
    assert tree(box.copy) == tree(box.root)


def test_equal_files_are_stored_once_whoever_reads_them_and_when(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH_A_WORKER_BYTES", 1)
    monkeypatch.setattr(packing, "SMALL_TASK_FILES", 3)
    contents = [os.urandom(200_000) for _ in range(5)]
    for number in range(40):
        (box.root / f"{number:02}").write_bytes(contents[number % 5])
    first = box.take()
    (box.root / "moved").mkdir()
    (box.root / "01").rename(box.root / "moved/01")
    (box.root / "copied").write_bytes(contents[2])

    second = box.take(2, first.manifest)
    box.restore(second.manifest_key)

    assert 5 * 200_000 <= first.new_bytes <= 8 * 200_000  # two workers may begin with the same content
    assert second.new_bytes == 0
    assert tree(box.copy) == tree(box.root)


def test_a_file_of_the_same_bytes_and_a_hole_is_another_file(box: Box) -> None:
    for name, at in (("full", 0), ("sparse", 1 << 17), ("twin", 0)):
        with (box.root / name).open("wb") as file:
            file.seek(at)
            file.write(b"data" * 1024)

    box.restore(box.take().manifest_key)

    assert tree(box.copy) == tree(box.root)


def test_a_stage_with_room_for_fewer_packs_than_workers_only_slows_down(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WORTH_A_WORKER_BYTES", 1)
    monkeypatch.setattr(stage, "SLOTS", 1)
    for number in range(9):
        (box.root / f"large{number}").write_bytes(os.urandom(1 << 20))

    box.restore(box.take().manifest_key)

    assert tree(box.copy) == tree(box.root)


def test_a_stage_on_a_disk_does_the_same(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MEMORY_SHARE", 1 << 30)
    monkeypatch.setattr(fetching, "MEMORY_SHARE", 1 << 30)
    (box.root / "model").write_bytes(os.urandom(90 << 20))

    box.restore(box.take().manifest_key)

    assert tree(box.copy) == tree(box.root)
    assert list((box.base / "other state/stage").iterdir()) == []
