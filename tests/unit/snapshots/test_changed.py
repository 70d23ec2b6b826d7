"""What of a workspace is not as a snapshot has it, and a snapshot of just that."""

from __future__ import annotations

import os
from pathlib import Path

from common.snapshots.changed import changed_since
from tests.snapshots_fixtures import Box


def filled(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "deep" / "er" / "same.txt").write_text("same")
    (root / "deep" / "longer.txt").write_text("short")
    (root / "touched.txt").write_text("one")
    (root / "link").symlink_to("deep")


def test_new_grown_rewritten_and_redirected_names_are_told_and_nothing_else(box: Box) -> None:
    filled(box.root)
    before = box.take().manifest
    (box.root / "deep" / "longer.txt").write_text("short no more")
    (box.root / "touched.txt").write_text("two")
    (box.root / "link").unlink()
    (box.root / "link").symlink_to("empty")
    (box.root / "new").mkdir()
    (box.root / "new" / "one.txt").write_text("new")
    os.link(box.root / "new" / "one.txt", box.root / "new" / "two.txt")

    changed = changed_since(box.root, before, None)

    assert changed == {b"deep/longer.txt", b"touched.txt", b"link", b"new/one.txt", b"new/two.txt"}


def test_without_a_snapshot_everything_is_new_but_what_was_not_touched_since(box: Box) -> None:
    filled(box.root)
    later = box.root / "later.txt"
    filled_at_ns = (box.root / "link").lstat().st_ctime_ns
    while not later.exists() or later.stat().st_ctime_ns == filled_at_ns:  # the kernel's clock has steps
        later.write_text("later")

    assert len(changed_since(box.root, None, None)) == 5
    assert changed_since(box.root, None, later.stat().st_ctime_ns) == {b"later.txt"}


def test_what_caches_are_is_left_out_as_ever(box: Box) -> None:
    (box.root / ".cache" / "pip").mkdir(parents=True)
    (box.root / ".cache" / "pip" / "wheel").write_text("downloaded")

    assert changed_since(box.root, None, None) == frozenset()


def test_a_snapshot_of_some_names_holds_them_and_the_way_there(box: Box) -> None:
    filled(box.root)
    taken = box.take(only=frozenset({b"deep/longer.txt", b"link"}))

    box.restore(taken.manifest_key)

    assert sorted(str(path.relative_to(box.copy)) for path in box.copy.rglob("*")) == [
        "deep",
        "deep/longer.txt",
        "link",
    ]
    assert (box.copy / "deep" / "longer.txt").read_text() == "short"
    assert box.verify(taken.manifest_key).files == 1
