"""Files that are touched between the walk and their reading, or meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.snapshots import packing, read, scan
from common.snapshots.chunk import FINE, SMALL_FILE_BYTES
from tests.snapshots_fixtures import Box

SIZES = [400, SMALL_FILE_BYTES + 1]


def after_the_walk(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    """Once."""
    tasks, waiting = packing._tasks, [happens]

    def with_it(*words: Any) -> Any:
        while waiting:
            waiting.pop()()
        return tasks(*words)

    monkeypatch.setattr(packing, "_tasks", with_it)


def save_anew(box: Box, name: str, content: bytes) -> None:
    """As editors do: another file takes the name."""
    (box.base / "new").write_bytes(content)
    (box.base / "new").replace(box.root / name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("saved", ["a", "b"])
def test_a_name_that_is_saved_anew_takes_no_content_from_the_other_names(
    box: Box, monkeypatch: pytest.MonkeyPatch, size: int, saved: str
) -> None:
    old, new = os.urandom(size), os.urandom(size)
    (box.root / "a").write_bytes(old)
    (box.root / "b").hardlink_to(box.root / "a")
    after_the_walk(monkeypatch, lambda: save_anew(box, saved, new))

    first = box.take()
    box.restore(first.manifest_key)

    assert [(box.copy / name).read_bytes() for name in "ab"] == [old, old], "as the walk met them"
    box.restore(box.take(2, first.manifest).manifest_key)
    contents = {name: (box.copy / name).read_bytes() for name in "ab"}
    assert contents == {"a": old, "b": old, saved: new}


@pytest.mark.parametrize("size", SIZES)
def test_names_that_all_lead_elsewhere_are_read_one_by_one(
    box: Box, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    new, newer = os.urandom(size), os.urandom(size + 1)
    (box.root / "a").write_bytes(os.urandom(size))
    for name in "bcd":
        (box.root / name).hardlink_to(box.root / "a")

    def all_change() -> None:
        for name in "ad":
            (box.root / name).unlink()
        save_anew(box, "b", new)
        save_anew(box, "c", newer)

    after_the_walk(monkeypatch, all_change)

    first = box.take()
    box.restore(first.manifest_key)

    assert {path.name: path.read_bytes() for path in box.copy.iterdir()} == {"b": new, "c": newer}
    assert sorted(first.vanished) == ["a", "d"]
    assert box.take(2, first.manifest).vanished == ()


def test_a_long_file_that_is_touched_while_it_is_read_is_not_taken_for_a_standstill(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = box.root / "dataset"
    path.write_bytes(os.urandom(4 << 20))
    monkeypatch.setattr(read, "grain_of", lambda _size: FINE)
    first = box.take()
    os.utime(path)
    cut, readings = read.cut, []

    def slowly(*words: Any) -> Iterator[Any]:
        """Touched in the first reading; the second takes longer than STALL_S."""
        readings.append(words)
        for piece in cut(*words):
            time.sleep(0.04 * (len(readings) - 1))
            yield piece
        if len(readings) == 1:
            os.utime(path)

    monkeypatch.setattr(read, "cut", slowly)
    monkeypatch.setattr(read, "TELLS_AT_BYTES", 128 << 10)
    monkeypatch.setattr(packing, "STALL_S", 1.5)

    second = box.take(2, first.manifest)

    assert (second.new_bytes, second.torn) == (0, ())


def test_a_file_that_is_cut_off_while_its_holes_are_looked_for_ends_there(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = box.root / "log"
    path.write_bytes(b"a line of it" * 1000)
    lseek = os.lseek

    def cut_off(fd: int, at: int, how: int) -> int:
        if how == os.SEEK_HOLE:
            os.truncate(path, 0)
        return lseek(fd, at, how)

    monkeypatch.setattr(scan.os, "lseek", cut_off)

    with path.open("rb") as file:
        assert list(scan.data_segments(file.fileno(), 12_000)) == []


def test_where_holes_cannot_be_told_all_is_content(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.root / "log").write_bytes(b"a line of it" * 1000)

    def unknown(*_words: Any) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(scan.os, "lseek", unknown)

    with (box.root / "log").open("rb") as file:
        assert list(scan.data_segments(file.fileno(), 12_000)) == [(0, 12_000)]
