"""In which order a restore asks for packs, and how many at a time: judged by what s5cmd is told, not by time."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import pytest

from common.snapshots import fetching, workers
from common.snapshots.transfer import program
from tests.snapshots_fixtures import Box, tree

LISTENING = """#!{python}
import json, subprocess, sys, threading
with subprocess.Popen(["{s5cmd}", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as real:
    def log(what, name):
        with open("{log}", "a") as file:
            print(what, name, file=file, flush=True)
    def hear():
        for line in real.stdout:
            log("arrived", json.loads(line)["destination"])
            print(line, end="", flush=True)
    threading.Thread(target=hear, daemon=True).start()
    for line in sys.stdin:
        log("asked", line.split()[-1])
        print(line, end="", file=real.stdin, flush=True)
"""
"""In the place of s5cmd: it does what s5cmd does, and writes down in which order it was asked and answered."""


def heard_of(box: Box, key: str, **words: Any) -> list[tuple[str, str]]:
    """A restore: ("asked" or "arrived", pack) in the order in which that happened."""
    log, listening = box.base / "log", box.base / "s5cmd"
    listening.write_text(LISTENING.format(python=sys.executable, log=str(log), s5cmd=program(box.endpoint)))
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
