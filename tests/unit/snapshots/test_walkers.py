"""A walk by several processes finds what one alone finds, whoever of them comes where."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import SnapshotError
from common.snapshots import walkers
from common.snapshots.scan import NOTHING, Excludes, Scan, scan
from common.snapshots.walkers import BATCH, PARTS_MAX, PARTS_MIN, Packed, Walkers
from common.snapshots.workers import apart

SEVERAL = 3


@pytest.fixture(autouse=True)
def several_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine with fewer processors."""
    monkeypatch.setattr(walkers, "most", lambda: SEVERAL)


def walked(root: Path, excludes: Excludes = NOTHING) -> Scan:
    with closing(Walkers(bytes(root), excludes)) as walk, apart(walk.go) as going:
        return walk.result(going())


def wide(root: Path, count: int = 2 * PARTS_MIN) -> Path:
    for number in range(count):
        folder = root / f"{number:04}/below"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * number)
        (folder / "link").symlink_to("file")
    return root


def same(one: Scan, other: Scan) -> bool:
    by_path = (sorted(one.found, key=lambda each: each.path), sorted(other.found, key=lambda each: each.path))
    return by_path[0] == by_path[1] and (one.skipped, one.excluded) == (other.skipped, other.excluded)


@pytest.mark.parametrize("count", [0, 1, PARTS_MIN - 1, PARTS_MIN, 3 * PARTS_MIN, PARTS_MAX + 50])
def test_it_finds_what_one_alone_finds(tmp_path: Path, count: int) -> None:
    wide(tmp_path, count)

    found = walked(tmp_path)

    assert same(found, scan(bytes(tmp_path)))
    met: set[bytes] = set()
    for each in found.found:  # a directory before what it holds
        assert not each.path or each.path.rpartition(b"/")[0] in met
        met.add(each.path)


def test_a_deep_tree_and_a_directory_of_many(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 200)
    deep.mkdir(parents=True)
    for number in range(BATCH + 10):
        (deep / f"{number}").touch()

    assert same(walked(tmp_path), scan(bytes(tmp_path)))


def test_a_tree_of_many_names_stays_packed_and_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(tmp_path)
    (tmp_path / "0001/again").hardlink_to(tmp_path / "0050/below/file")
    as_objects = walked(tmp_path)
    monkeypatch.setattr(walkers, "MANY", 10)

    packed = walked(tmp_path)

    assert isinstance(packed.found, Packed) and not isinstance(as_objects.found, Packed)
    assert list(packed.found) == [packed.found[place] for place in range(len(packed.found))] == list(as_objects.found)
    with pytest.raises(IndexError):
        packed.found[len(packed.found)]


@pytest.mark.parametrize("many", [walkers.MANY, 10])
def test_a_file_with_names_in_several_parts_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:  # fmt: skip
    monkeypatch.setattr(walkers, "MANY", many)
    wide(tmp_path)
    names = [tmp_path / f"{number:04}/below/again" for number in range(0, 2 * PARTS_MIN, 5)]
    names[0].write_bytes(b"one file")
    for name in names[1:]:
        name.hardlink_to(names[0])

    runs = [walked(tmp_path) for _ in range(5)]

    inside = [os.fsencode(name.relative_to(tmp_path)) for name in names]
    for run in runs:
        (one,) = (each for each in run.found if each.path in inside)
        assert (one.path, *one.others) == tuple(inside)  # the same one is first, whoever was there first
    assert same(runs[0], scan(bytes(tmp_path)))


def test_what_is_left_out_is_said_once(tmp_path: Path) -> None:
    wide(tmp_path)
    for number in range(2 * PARTS_MIN):
        os.mkfifo(tmp_path / f"{number:04}/pipe")
    excludes = Excludes(looks_at_files=True, names=lambda path, _is_dir: path.endswith(b"link"))

    found = walked(tmp_path, excludes)

    assert (len(found.skipped), len(found.excluded)) == (2 * PARTS_MIN, 2 * PARTS_MIN)
    assert same(found, scan(bytes(tmp_path), excludes))


def test_what_cannot_be_looked_into_fails_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(tmp_path)
    monkeypatch.chdir(tmp_path / "0063")
    for _ in range(20):  # a path that is longer than the kernel takes
        Path("n" * 250).mkdir()
        os.chdir("n" * 250)

    with pytest.raises(SnapshotError, match="cannot read 0063"):
        walked(tmp_path)
    with pytest.raises(SnapshotError, match="no directory"):
        walked(tmp_path / "nowhere")
