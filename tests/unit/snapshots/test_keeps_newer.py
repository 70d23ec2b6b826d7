"""A snapshot beside what is there: what is as new stays, and a run that broke off leaves nothing that looks newer."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import SnapshotError
from tests.snapshots_fixtures import Box, tree

LIMIT_BYTES = 100_000


@contextmanager
def files_no_larger_than(limit_bytes: int) -> Iterator[None]:
    """For this process and its children."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_run_left_that_broke_off_in_the_middle_of_a_file_is_made_whole_by_the_next(box: Box) -> None:
    (box.root / "a folder").mkdir()
    (box.root / "a folder" / "small.txt").write_text("small")
    (box.root / "a folder" / "long.txt").write_text("the same line\n" * 20_000)
    taken = box.take()
    with files_no_larger_than(LIMIT_BYTES), pytest.raises(SnapshotError):
        box.restore(taken.manifest_key, keeps_newer=True)

    box.restore(taken.manifest_key, keeps_newer=True)

    assert tree(box.copy) == tree(box.root)


def test_what_is_as_new_stays_and_nothing_is_removed(box: Box) -> None:
    (box.root / "a folder").mkdir()
    for name in ("newer.txt", "older.txt", "a folder/lacking.txt"):
        (box.root / name).write_text("of the snapshot")
    (box.root / "nothing in it").touch()
    taken = box.take()
    box.copy.mkdir()
    for name in ("newer.txt", "older.txt", "alone.txt"):
        (box.copy / name).write_text("was there")
    os.utime(box.copy / "older.txt", ns=(1, 1))

    box.restore(taken.manifest_key, keeps_newer=True)

    found = {str(path.relative_to(box.copy)): path.read_text() for path in box.copy.rglob("*") if path.is_file()}
    assert found == {
        "newer.txt": "was there",
        "alone.txt": "was there",
        "older.txt": "of the snapshot",
        "a folder/lacking.txt": "of the snapshot",
        "nothing in it": "",
    }
