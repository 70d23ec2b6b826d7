"""What a snapshot cannot hold: it is said when it is taken, and nothing is stored that nobody can read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from common.errors import SnapshotError
from common.snapshots import scan, seal
from common.snapshots.fetching import MEMORY_DISK
from common.snapshots.limits import MAX_FILE_BYTES, MTIME_NS
from tests.snapshots_fixtures import Box, tree

NS = 1_000_000_000
IN_2200, IN_2300 = 7_258_118_400 * NS, 10_413_792_000 * NS


@pytest.mark.parametrize("dated_ns", [IN_2200, IN_2300])
def test_what_is_dated_far_away_comes_back_with_the_nearest_time_that_a_snapshot_holds(box: Box, dated_ns: int) -> None:
    (box.root / "thesis").write_bytes(b"three years of work")
    (box.root / "folder").mkdir()
    (box.root / "link").symlink_to("thesis")
    for name in ("thesis", "link", "folder"):
        os.utime(box.root / name, ns=(dated_ns, dated_ns), follow_symlinks=False)
    assert (box.root / "thesis").stat().st_mtime_ns == dated_ns

    first = box.take()
    box.restore(first.manifest_key)

    assert (box.copy / "thesis").read_bytes() == b"three years of work"
    assert {(box.copy / name).lstat().st_mtime_ns for name in ("thesis", "link", "folder")} == {MTIME_NS}
    assert box.restore(first.manifest_key).files_written == 0
    assert box.verify(first.manifest_key).ok
    assert box.take(2, first.manifest).new_bytes == 0


@pytest.mark.parametrize("dated_ns", [IN_2200, IN_2300])
def test_a_snapshot_that_could_not_be_read_is_not_stored_and_the_one_before_stands(
    box: Box, monkeypatch: pytest.MonkeyPatch, dated_ns: int
) -> None:
    (box.root / "thesis").write_bytes(b"three years of work")
    first = box.take()
    os.utime(box.root / "thesis", ns=(dated_ns, dated_ns))
    monkeypatch.setattr(scan, "MTIME_NS", 1 << 80)  # an engine that lets through what no reader takes

    with pytest.raises(SnapshotError, match="could not be read again"):
        box.take(2, first.manifest)

    assert box.manifests() == [first.manifest_key]
    box.restore(first.manifest_key)
    assert (box.copy / "thesis").read_bytes() == b"three years of work"
    monkeypatch.undo()
    assert box.take(3, first.manifest).files == 1


def test_a_manifest_that_is_too_long_to_be_read_is_not_stored(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "MAX_MANIFEST_BYTES", 100)

    with pytest.raises(SnapshotError, match="100 at most"):
        box.take()

    assert box.manifests() == []


def test_a_file_that_is_too_long_is_named(box: Box) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as folder:  # other file systems have no files of that length
        root = Path(folder)
        (root / "thesis").write_bytes(b"three years of work")
        with (root / "endless").open("wb") as file:
            file.truncate(MAX_FILE_BYTES + 1)

        with pytest.raises(SnapshotError, match=rf"endless is of {MAX_FILE_BYTES + 1} bytes"):
            box.take(root=root)

        assert box.manifests() == []
        (root / ".dumontignore").write_text("endless\n")
        assert box.take(root=root).excluded == ("endless",)


def test_a_file_of_the_greatest_length_comes_back(box: Box) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as folder:
        root, copy = Path(folder, "root"), Path(folder, "copy")
        root.mkdir()
        with (root / "endless").open("wb") as file:
            file.write(b"begins")
            file.truncate(MAX_FILE_BYTES)

        box.restore(box.take(root=root).manifest_key, root=copy)

        assert (copy / "endless").stat().st_size == MAX_FILE_BYTES
        with (copy / "endless").open("rb") as file:
            assert file.read(6) == b"begins"
        (root / "endless").unlink()
        (copy / "endless").unlink()
        assert tree(root).keys() == tree(copy).keys()
