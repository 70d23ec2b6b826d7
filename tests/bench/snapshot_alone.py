"""The engine alone, in a process of its own, without a command line around it: what it uses and when files are there.

Run by `bench_snapshots` as: python -m tests.bench.snapshot_alone <what> <words of JSON>; the last line is JSON.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.snapshots import engine
from common.snapshots.keys import keys_of
from common.snapshots.manifest import Entry, pack_key
from common.snapshots.pack import open_chunk
from infra.demo.s3_server import S3Server

GIB = 1 << 30
LINK_BYTES_S = 125e6
"""1 Gbit/s"""
SMALL_SHARE = 0.9
ASKS_AFTER_S = 0.3
"""Of a restore that is under way."""
LIAR = """#!{python}
import json, sys
for line in sys.stdin:
    *_, source, destination = line.split()
    print(json.dumps({{"success": True, "source": source, "destination": destination}}), flush=True)
"""
"""In place of s5cmd, where only the engine's memory counts: it takes everything and keeps nothing."""


def alone(what: str, server: S3Server, home: Path, **words: Any) -> dict[str, Any]:
    """What it printed."""
    way = {"url": server.endpoint, "bucket": server.bucket, "access_key": server.access_key}
    given = json.dumps({**words, "home": str(home), "way": {**way, "secret_key": server.secret_key}})
    command = [sys.executable, "-m", "tests.bench.snapshot_alone", what, given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def paced(root: Path, home: Path, way: engine.Endpoint) -> dict[str, float]:
    """A backup over a line of 1 Gbit/s: the share of it that was filled, and what that cost."""
    before, began = _cpu_s(), time.monotonic()
    taken = _take(root, home, way)
    seconds, cpu = time.monotonic() - began, _cpu_s() - before
    return {
        "link_share": taken.stored_bytes / seconds / LINK_BYTES_S,
        "cpu_s_per_gib": cpu / (taken.stored_bytes / GIB),
        "stored_bytes": taken.stored_bytes,
    }


def order(root: Path, home: Path, way: engine.Endpoint) -> dict[str, float]:
    """Of a restore's time: when the first file was there, and when 90 % of all files were (they are small ones)."""
    taken = _take(root, home, way)
    (home / "last.dm").unlink()
    counts, seen, began = engine.Counts(), [(0.0, 0)], time.monotonic()

    def look(_done: int, _total: int, _what: str) -> None:
        seen.append((time.monotonic() - began, counts.files))

    engine.restore(
        taken.manifest_key, home / "restored", prefix="alone/", instance_key=b"k" * 32, state_dir=home, endpoint=way,
        clock=time.monotonic, progress=look, counts=counts,
    )  # fmt: skip
    total = time.monotonic() - began
    most = next(at for at, files in seen if files >= SMALL_SHARE * taken.files)
    return {"first_s": next(at for at, files in seen if files), "most_small_share": most / total, "total_s": total}


def wanted(root: Path, home: Path, way: engine.Endpoint) -> dict[str, float]:
    """Seconds from asking for a file to having it while everything comes back; and the least that a view of files which
    are not there yet could need at that moment of another restore: to fetch one chunk and open it, when it is connected
    already."""
    taken = _take(root, home, way)
    entry = next(entry for entry in taken.manifest.entries if entry.kind == "file" and entry.extents)
    begun, had = 0.0, 0.0

    def ask() -> list[bytes]:
        return [entry.path] if time.monotonic() - begun > ASKS_AFTER_S else []

    def look(_done: int, _total: int, _what: str) -> None:
        nonlocal had
        had = had or (time.monotonic() - begun) * (home / "restored" / os.fsdecode(entry.path)).exists()

    def again(**words: Any) -> None:
        nonlocal begun
        (home / "last.dm").unlink()
        begun = time.monotonic()
        engine.restore(
            taken.manifest_key, home / "restored", prefix="alone/", instance_key=b"k" * 32, state_dir=home,
            endpoint=way, clock=time.monotonic, **words,
        )  # fmt: skip
        shutil.rmtree(home / "restored")

    again(progress=look, wanted=ask)
    view = View(taken.manifest, entry, way)
    reader = threading.Timer(ASKS_AFTER_S, view.first_byte)
    reader.start()
    again()
    reader.join()
    return {"want_s": had - ASKS_AFTER_S, "view_s": view.seconds}


class View:
    """Of a file that is not there yet: it fetches one chunk when it is asked for its first byte."""

    def __init__(self, manifest: engine.Manifest, entry: Entry, way: engine.Endpoint) -> None:
        import boto3  # here: it would count as the engine's memory elsewhere
        from botocore.config import Config

        self._name = entry.extents[0].chunk
        self._chunk = manifest.chunks[self._name]
        self._pack = manifest.packs[self._chunk.pack]
        self._words = {"Bucket": way.bucket, "Key": pack_key(manifest.prefix, self._chunk.pack)}
        self._client = boto3.client(
            "s3", endpoint_url=way.url, region_name=way.region, aws_access_key_id=way.access_key,
            aws_secret_access_key=way.secret_key, config=Config(response_checksum_validation="when_required"),
        )  # fmt: skip
        self._client.head_object(**self._words)  # it is connected from now on
        self.seconds = 0.0

    def first_byte(self) -> None:
        began = time.monotonic()
        span = f"bytes={self._chunk.offset}-{self._chunk.offset + self._chunk.stored - 1}"
        stored = self._client.get_object(**self._words, Range=span)["Body"].read()
        open_chunk(self._name, self._chunk, self._pack, stored, keys_of(b"k" * 32))
        self.seconds = time.monotonic() - began


def memory(home: Path, size: int, entries: int) -> dict[str, float]:
    """The largest sum of PSS of the engine's processes while `size` bytes of noise, or `entries` files, are taken."""
    root = home / "root"
    for number in range(entries):
        if number % 1000 == 0:
            (root / f"{number // 1000}").mkdir(parents=True)
        (root / f"{number // 1000}" / f"{number}").touch()
    root.mkdir(parents=True, exist_ok=True)
    with (root / "noise").open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    liar = home / "s5cmd"
    liar.write_text(LIAR.format(python=sys.executable))
    liar.chmod(0o755)
    most = 0.0

    def look(_done: int, _total: int, _what: str) -> None:
        nonlocal most
        most = max(most, pss_mb(os.getpid()))

    _take(root, home / "state", engine.Endpoint("http://nowhere", "b", "k", "s", s5cmd=liar), look)
    return {"pss_mb": max(most, pss_mb(os.getpid()))}


def pss_mb(pid: int) -> float:
    """Of a process and all below it."""
    return sum(_pss_kb(member) for member in _family(pid)) / 1024


def _take(root: Path, home: Path, way: engine.Endpoint, progress: engine.Progress | None = None) -> engine.Taken:
    return engine.take(
        root, prefix="alone/", instance_key=b"k" * 32, epoch=1, seq=1, taken_at=datetime.now(UTC), previous=None,
        state_dir=home, endpoint=way, clock=time.monotonic, progress=progress or (lambda _done, _total, _what: None),
    )  # fmt: skip


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _pss_kb(pid: int) -> int:
    """Without the stage, which is bounded by itself: the engine sums what lies there where it lies."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return 0
    found, is_stage = 0, False
    for line in lines:
        first, *words = line.split()
        if not first.endswith(":"):
            is_stage = "/memfd:dumont-stage" in line
        elif first == "Pss:" and not is_stage:
            found += int(words[0])
    return found


def main() -> None:
    what, words = sys.argv[1], json.loads(sys.argv[2])
    home = Path(words["home"])
    home.mkdir(parents=True, exist_ok=True)
    gc.disable()  # as `dumont-host` and the agent do
    if what == "memory":
        found = memory(home, words["size"], words["entries"])
    else:
        way = engine.Endpoint(**words["way"], max_bytes_s=words.get("max_bytes_s"))
        found = {"paced": paced, "order": order, "wanted": wanted}[what](Path(words["root"]), home, way)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
