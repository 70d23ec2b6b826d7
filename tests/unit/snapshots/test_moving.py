"""Files that are touched between the walk and their reading, or meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from common.snapshots import packing
from common.snapshots.chunk import SMALL_FILE_BYTES
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
