"""A restore over what others left: parts of another snapshot's files, and names with nothing in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.snapshots.tree import part_of
from tests.snapshots_fixtures import Box, tree

SIZE = 6 << 20
PART = os.fsdecode(part_of(b"disk"))


def write_sparse(path: Path, islands: Sequence[tuple[int, bytes]]) -> None:
    with path.open("wb") as file:
        for at, content in islands:
            file.seek(at)
            file.write(content)
        file.truncate(SIZE)


@pytest.mark.parametrize("places", [(), (4 << 20,), (0, 4 << 20)])
@pytest.mark.parametrize("keeps_newer", [False, True])
def test_what_is_left_of_another_snapshots_file_shows_through_no_hole(
    box: Box, places: Sequence[int], keeps_newer: bool
) -> None:
    write_sparse(box.root / "disk", [(at, os.urandom(1 << 20)) for at in places])
    box.copy.mkdir()
    (box.copy / PART).write_bytes(os.urandom(SIZE))

    box.restore(box.take().manifest_key, keeps_newer=keeps_newer)

    assert (box.copy / "disk").read_bytes() == (box.root / "disk").read_bytes()
    assert (box.copy / "disk").stat().st_blocks == (box.root / "disk").stat().st_blocks
    if not keeps_newer:
        assert tree(box.copy) == tree(box.root)


def test_what_is_left_of_the_same_sparse_file_is_gone_on_from(box: Box) -> None:
    islands = [(0, os.urandom(1 << 20)), (4 << 20, os.urandom(1 << 20))]
    write_sparse(box.root / "disk", islands)
    box.copy.mkdir()
    write_sparse(box.copy / PART, islands[:1])

    restored = box.restore(box.take().manifest_key)

    assert restored.bytes_written == 1 << 20
    assert tree(box.copy) == tree(box.root)


@pytest.mark.parametrize("there", [b"", b"shorter", bytes(SIZE), b"x" * (SIZE + 1)])
def test_a_file_of_nothing_but_a_hole_is_as_long_as_it_was(box: Box, there: bytes) -> None:
    write_sparse(box.root / "disk", [])
    box.copy.mkdir()
    (box.copy / "disk").write_bytes(there)

    box.restore(box.take().manifest_key)

    assert tree(box.copy) == tree(box.root)
    assert (box.copy / "disk").stat().st_blocks == 0


def test_an_empty_file_takes_the_place_of_a_full_one_and_is_not_written_again(box: Box) -> None:
    (box.root / "empty").write_bytes(b"")
    box.copy.mkdir()
    (box.copy / "empty").write_bytes(b"full")
    key = box.take().manifest_key

    assert [box.restore(key).files_written for _ in range(2)] == [1, 0]
    assert tree(box.copy) == tree(box.root)
