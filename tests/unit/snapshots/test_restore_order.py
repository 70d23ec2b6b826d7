"""In which order a restore asks for packs, and how many at a time: judged by what s5cmd is told, not by time."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import SnapshotDamaged
from common.snapshots import engine, fetching, workers
from common.snapshots.manifest import Extent
from common.snapshots.transfer import program
from tests.snapshots_fixtures import PREFIX, Box, tree

LISTENING = """#!{python}
import json, os, subprocess, sys, threading, time
with subprocess.Popen(["{s5cmd}", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as real:
    def log(what, name):
        with open("{log}", "a") as file:
            print(what, name, file=file, flush=True)
    def hear():
        until = time.monotonic() + 20
        for line in real.stdout:
            while {waits_for!r} and not os.path.exists({waits_for!r}) and time.monotonic() < until:
                time.sleep(0.01)
            log("arrived", json.loads(line)["destination"])
            print(line, end="", flush=True)
    threading.Thread(target=hear, daemon=True).start()
    for line in sys.stdin:
        log("asked", line.split()[-1])
        print(line, end="", file=real.stdin, flush=True)
"""
"""In the place of s5cmd: it does what s5cmd does, and writes down in which order it was asked and answered. It answers
when a file is there that it `waits_for`."""


def heard_of(box: Box, key: str, waits_for: Path | str = "", **words: Any) -> list[tuple[str, str]]:
    """A restore: ("asked" or "arrived", pack) in the order in which that happened."""
    log, listening = box.base / "log", box.base / "s5cmd"
    known = {"python": sys.executable, "log": str(log), "s5cmd": program(box.endpoint), "waits_for": str(waits_for)}
    listening.write_text(LISTENING.format(**known))
    listening.chmod(0o755)
    box.restore(key, endpoint=replace(box.endpoint, s5cmd=listening), **words)
    return [(what, pack) for what, pack in map(str.split, log.read_text().splitlines())]


def test_a_path_that_somebody_waits_for_is_fetched_next(box: Box) -> None:
    for number in range(12):
        (box.root / f"{number:02}").write_bytes(os.urandom(33 << 20))
        os.utime(box.root / f"{number:02}", ns=(number, number))
    key = box.take().manifest_key
    order: list[str] = []

    def look(done: int, total: int, what: str) -> None:
        order.extend(sorted({path.name for path in box.copy.glob("[0-9]*")} - set(order)))

    box.restore(key, progress=look, wanted=lambda: [b"00"])

    assert order[0] == "00"


@pytest.fixture
def many(box: Box) -> engine.Taken:
    """Small files in several packs, and bulk."""
    for number in range(400):
        (box.root / f"small{number:03}").write_bytes(os.urandom(60_000))
    (box.root / "folder").mkdir()
    for number in range(3):
        (box.root / f"folder/{number}").write_bytes(os.urandom(100_000))
    (box.root / "large").write_bytes(os.urandom(12 << 20))
    return box.take()


def test_a_small_file_that_somebody_waits_for_comes_by_itself(box: Box, many: engine.Taken) -> None:
    arrived: list[bool] = []
    log = box.base / "log"

    def look(_done: int, _total: int, _what: str) -> None:
        if (box.copy / "folder/1").exists():
            arrived.append(log.exists() and "arrived" in log.read_text())

    heard_of(
        box, many.manifest_key, waits_for=box.copy / "folder/1", progress=look, wanted=lambda: [b"folder/1"]
    )  # fmt: skip

    assert not arrived[0]
    assert tree(box.copy) == tree(box.root)


def test_what_its_user_did_with_it_meanwhile_stays(box: Box, many: engine.Taken) -> None:
    """It is written once, however often and in whatever way it is asked for."""
    asked = [b"folder/1"]
    edited = [box.copy / "folder/1", box.copy / "folder/2", box.copy / "small399"]
    once = set(edited)

    def look(_done: int, _total: int, _what: str) -> None:
        for path in [path for path in once if path.exists()]:
            path.write_bytes(b"edited")
            once.remove(path)
        if edited[0].exists():
            asked.append(b"folder")
        if edited[1].exists():
            asked.extend([b"folder/2", b"small399", b""])

    box.restore(many.manifest_key, progress=look, wanted=lambda: asked)

    assert [path.read_bytes() for path in edited] == [b"edited"] * 3
    for path in edited:
        path.write_bytes((box.root / path.relative_to(box.copy)).read_bytes())
    assert tree_without_times(box.copy) == tree_without_times(box.root)


def test_a_wanted_file_that_is_damaged_ends_the_restore_as_any_other(box: Box, many: engine.Taken) -> None:
    chunk = many.manifest.chunks[extent_of(many, b"folder/1").chunk]
    key = f"{PREFIX}packs/{chunk.pack}"
    content = bytearray(box.objects.get(key))
    content[chunk.offset + 9] ^= 1
    box.objects.put(key, bytes(content))

    with pytest.raises(SnapshotDamaged) as caught:
        box.restore(many.manifest_key, wanted=lambda: [b"folder/1", b"small000"])

    assert caught.value.chunk == extent_of(many, b"folder/1").chunk
    assert not list(box.copy.rglob("*"))


def extent_of(taken: engine.Taken, path: bytes) -> Extent:
    (entry,) = (entry for entry in taken.manifest.entries if entry.path == path)
    return entry.extents[0]


def tree_without_times(root: Path) -> dict[bytes, Any]:
    return {path: (kind, *rest[2:]) for path, (kind, _, *rest) in tree(root).items()}


def test_small_files_are_there_before_bulk_is_even_asked_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH_A_WORKER_BYTES", 1 << 40)  # one worker: its order is the engine's
    for number in range(400):
        (box.root / f"small{number:03}").write_bytes(os.urandom(60_000))
    for number in range(6):
        (box.root / f"large{number}").write_bytes(os.urandom(12 << 20))  # newer than the small ones
    (box.root / "one chunk").write_bytes(os.urandom(300_000))
    taken = box.take()
    of_small = {
        taken.manifest.chunks[extent.chunk].pack
        for entry in taken.manifest.entries
        if entry.path.startswith(b"small")
        for extent in entry.extents
    }
    small_when_large: list[int] = []

    def look(_done: int, _total: int, _what: str) -> None:
        if any(box.copy.glob("large*")) or any(box.copy.glob("one chunk")):
            small_when_large.append(len(list(box.copy.glob("small*"))))

    said = heard_of(box, taken.manifest_key, progress=look)

    bulk_asked = [row for row, (what, pack) in enumerate(said) if what == "asked" and pack not in of_small]
    small_arrived = [row for row, (what, pack) in enumerate(said) if what == "arrived" and pack in of_small]
    assert len(of_small) >= 2 and len(small_arrived) == len(of_small)
    assert len(bulk_asked) >= 2 and max(small_arrived) < min(bulk_asked)
    assert min(small_when_large) == 400
    assert tree(box.copy) == tree(box.root)


def test_what_waits_in_the_stage_is_bounded_however_large_packs_are(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    (box.root / "model").write_bytes(os.urandom(40 << 20))
    key = box.take().manifest_key
    monkeypatch.setattr(fetching, "STAGE_BYTES", 1)

    said = heard_of(box, key)

    assert len(said) >= 6
    assert [what for what, _ in said] == ["asked", "arrived"] * (len(said) // 2)
    assert tree(box.copy) == tree(box.root)
