"""What a backup costs whoever computes beside it: one busy process for each core, with and without the engine's child.

The child is the one that an order starts, with its niceness. That counts wherever the neighbours are scheduled beside
it: in a container always. On a machine whose kernel shares the processors between sessions first (sched(7), autogroups:
not in a container's control group) it does not count for neighbours of another session; there only the cap helps.

The server stands for a store elsewhere: what it takes of the processors is taken off what the neighbours could have
had, and s5cmd is not, for it runs on the host.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.domain.host import Order
from common.host.work import start_work
from infra.demo.s3_server import S3Server

ALONE_S, BESIDE_MOST_S = 3.0, 20.0
LOOK_S = 0.02
COUNT_BYTES = 8
BUSY = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    table = mmap.mmap(file.fileno(), 0)
at, count = int(sys.argv[2]), 0
while True:
    for _ in range(20_000):
        count += 1
    table[at : at + 8] = count.to_bytes(8, "little")
"""
CAPS: dict[str, dict[str, Any]] = {"no_cap": {}, "one_core": {"max_cpus": 1}}


def measure(server: S3Server, root: Path, home: Path) -> dict[str, dict[str, float]]:
    """Of the speed that the neighbours have alone, what is left while a backup runs: without caps, and on one core."""
    home.mkdir()
    return {
        where: _left(server, root, home / where, apart=apart)
        for where, apart in (("as_in_a_container", False), ("of_another_session", True))
    }


def _left(server: S3Server, root: Path, home: Path, *, apart: bool) -> dict[str, float]:
    home.mkdir()
    cores = len(os.sched_getaffinity(0))
    with _busy(home / "counts", cores, apart=apart) as counts:
        began, before = time.monotonic(), _sum(counts)
        time.sleep(ALONE_S)
        alone = (_sum(counts) - before) / (time.monotonic() - began)
        shares = {name: _beside(server, root, home / name, caps, counts, cores) / alone for name, caps in CAPS.items()}
    return {name: round(share, 2) for name, share in shares.items()}


def _beside(
    server: S3Server, root: Path, home: Path, caps: dict[str, Any], counts: mmap.mmap, cores: int
) -> float:  # fmt: skip
    """Counts per second while a backup runs, as if the server were elsewhere."""
    began, before, served = time.monotonic(), _sum(counts), _cpu_s(server.process.pid)
    work = start_work(_task(server, root, home, caps), home)
    while not work.finished() and time.monotonic() - began < BESIDE_MOST_S:
        time.sleep(LOOK_S)
    seconds = time.monotonic() - began
    work.kill()
    rate, by_server = (_sum(counts) - before) / seconds, (_cpu_s(server.process.pid) - served) / seconds / cores
    print(
        f"beside a backup {caps or 'without caps'}: {seconds:.1f} s, the server took {by_server:.0%}", file=sys.stderr
    )
    return rate / (1 - by_server)


def _task(server: S3Server, root: Path, home: Path, caps: dict[str, Any]) -> dict[str, Any]:
    credentials = {"endpoint": server.endpoint, "region": "us-east-1", "bucket": server.bucket, "session_token": None}
    keys = {"access_key": server.access_key, "secret_key": server.secret_key}
    return {
        "kind": "snapshot",
        "order": Order(id="snapshot-1-1-live", kind="snapshot").model_dump(mode="json"),
        "epoch": 1,
        "seq": 1,
        "workspace": str(root),
        "home": str(home),
        "args": {"prefix": f"neighbour/{home.parent.name}/{home.name}/", "instance_key": bytes(32).hex(), **caps},
        "credentials": {**credentials, **keys},
    }


@contextmanager
def _busy(file: Path, cores: int, *, apart: bool) -> Iterator[mmap.mmap]:
    """A process for each core that does nothing but count, each in a session of its own or all in ours; the counts."""
    file.write_bytes(bytes(COUNT_BYTES * cores))
    words = [sys.executable, "-c", BUSY, str(file)]
    neighbours = [subprocess.Popen([*words, str(COUNT_BYTES * n)], start_new_session=apart) for n in range(cores)]
    try:
        with file.open("rb") as opened:
            yield mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def _sum(counts: mmap.mmap) -> int:
    return sum(int.from_bytes(counts[at : at + COUNT_BYTES], "little") for at in range(0, len(counts), COUNT_BYTES))


def _cpu_s(pid: int) -> float:
    """Of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    import tempfile

    from infra.demo.s3_server import s3_server

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, s3_server(Path(folder) / "store") as found:
        print(json.dumps(measure(found, Path(sys.argv[1]), Path(folder) / "home")))
