"""Holds a process to a rate of bytes: it is stopped for a moment whenever it was too fast.

s5cmd has no such option, and what it moves is encrypted on its way; but the kernel counts what a process writes, to a
socket when it uploads and to a file when it downloads (`wchar` in /proc/<pid>/io, proc(5)). The other side waits longer
than any of the pauses.
"""

from __future__ import annotations

import os
import signal
import threading  # noqa: TID251 - it only stops and continues another process
import time  # noqa: TID251 - a rate is a matter of real time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOK_S = 0.02
"""What is written between two looks is paid for after it: on a line of 1 Gbit/s some 2 MB."""
BURST_S = 0.5
"""Of unused rate is made up for."""
PAUSE_MAX_S = 5.0


@contextmanager
def paced(pid: int, max_bytes_s: float | None) -> Iterator[None]:
    """Until the block is left; None = without a limit. The process goes on freely afterwards."""
    if max_bytes_s is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_hold, args=(pid, max_bytes_s, over), daemon=True, name="pace")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _hold(pid: int, max_bytes_s: float, over: threading.Event) -> None:
    looked_at, seen, left = time.monotonic(), _written(pid), 0.0
    while not over.wait(LOOK_S):
        now, written = time.monotonic(), _written(pid)
        left = min(left + (now - looked_at) * max_bytes_s, BURST_S * max_bytes_s) - (written - seen)
        looked_at, seen = now, written
        if left < 0:
            _signal(pid, signal.SIGSTOP)
            over.wait(min(-left / max_bytes_s, PAUSE_MAX_S))
            _signal(pid, signal.SIGCONT)


def _written(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar")), 0)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
