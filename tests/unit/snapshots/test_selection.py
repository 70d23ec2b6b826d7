"""A part of a snapshot: some names with what lies below them, and the way there."""

from __future__ import annotations

import os

import pytest

from common.domain.version import Version
from common.snapshots import engine
from common.snapshots.manifest import Entry, Manifest
from common.snapshots.selection import lacking, selected
from tests.snapshots_fixtures import Box, tree


def of(*entries: Entry) -> Manifest:
    return Manifest("", Version(epoch=1, seq=1), "", (Entry(b"", "dir"), *entries), {}, {})


def paths(manifest: Manifest) -> list[bytes]:
    return [entry.path for entry in manifest.entries]


DEEP = of(
    Entry(b"a", "dir"),
    Entry(b"a/b", "dir"),
    Entry(b"a/b/c", "file"),
    Entry(b"a/other", "file"),
    Entry(b"ab", "dir"),
    Entry(b"ab/c", "file"),
    Entry(b"link", "symlink", target=b"a"),
)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({b"a/b/c"}, [b"", b"a", b"a/b", b"a/b/c"]),
        ({b"a"}, [b"", b"a", b"a/b", b"a/b/c", b"a/other"]),
        ({b"a/b", b"ab/c"}, [b"", b"a", b"a/b", b"a/b/c", b"ab", b"ab/c"]),
        ({b"link"}, [b"", b"link"]),
    ],
)
def test_a_directory_comes_with_what_it_holds_and_anything_with_the_way_to_it(
    names: set[bytes], found: list[bytes]
) -> None:
    assert paths(selected(DEEP, names)) == found


def test_what_a_snapshot_does_not_have_is_told() -> None:
    assert lacking(DEEP, [b"a/b", b"a/b/d", b"link/b", b"ab"]) == [b"a/b/d", b"link/b"]


def test_a_further_name_of_a_file_that_is_not_among_them_becomes_the_file() -> None:
    first = Entry(b"one", "file", mode=0o640, mtime_ns=7, size=3, sum="5" * 32)
    links = [Entry(path, "hardlink", target=b"one") for path in (b"three", b"two")]
    linked = of(first, *links)

    alone = selected(linked, {b"two"})
    both = selected(linked, {b"three", b"two"})
    all_three = selected(linked, {b"one", b"three", b"two"})

    assert alone.entries[1:] == (first._replace(path=b"two"),)
    assert both.entries[1:] == (first._replace(path=b"three"), links[1]._replace(target=b"three"))
    assert all_three == linked


def test_a_part_is_restored_with_contents_modes_times_and_links_and_nothing_else(box: Box) -> None:
    (box.root / "data" / "deep").mkdir(parents=True)
    (box.root / "data" / "deep" / "model.bin").write_bytes(os.urandom(3_000_000))
    (box.root / "data" / "small.txt").write_text("small")
    (box.root / "data" / "small.txt").chmod(0o600)
    (box.root / "first.txt").write_text("one file of three names")
    os.link(box.root / "first.txt", box.root / "data" / "second.txt")
    os.link(box.root / "first.txt", box.root / "data" / "third.txt")
    (box.root / "way").symlink_to("data")
    taken = box.take()
    box.restore(taken.manifest_key, manifest=engine.selected(taken.manifest, {b"data", b"way"}), keeps_newer=True)

    (box.root / "first.txt").unlink()
    os.utime(box.root, ns=(0, 0))
    os.utime(box.copy, ns=(0, 0))
    expected, found = tree(box.root), tree(box.copy)
    assert found == expected
    assert (box.copy / "data" / "second.txt").stat().st_nlink == 2


def test_only_the_packs_that_a_part_needs_are_fetched(box: Box) -> None:
    (box.root / "huge").write_bytes(os.urandom(20_000_000))
    (box.root / "small.txt").write_text("small")
    taken = box.take()

    part = box.restore(taken.manifest_key, manifest=engine.selected(taken.manifest, {b"small.txt"}), keeps_newer=True)

    assert (box.copy / "small.txt").read_text() == "small"
    assert part.files_written == 1
    assert part.bytes_fetched < 10_000_000
