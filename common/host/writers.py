"""The user's processes on a host: every descendant of the container's init that is not the agent's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROUNDS_MAX = 20
"""A process may be forked while the others are being stopped: look again until a round finds nothing new."""


@dataclass
class Processes:
    """Stopped by SIGSTOP, continued by SIGCONT. `init` is the root of the container's process tree."""

    init: int = 1

    def freeze(self) -> None:
        stopped: set[int] = set()
        for _ in range(ROUNDS_MAX):
            running = [pid for pid in self._users() if pid not in stopped]
            if not running:
                return
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            stopped.update(running)

    def thaw(self) -> None:
        for pid in self._users():
            _signal(pid, signal.SIGCONT)

    def _users(self) -> Iterator[int]:
        parents = dict(_parents())
        spared = {self.init, *_line_of(os.getpid(), parents)}
        for pid in parents:
            line = _line_of(pid, parents)
            if pid not in spared and self.init in line and os.getpid() not in line:
                yield pid


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            yield int(entry.name), int(after_name[1])


def _line_of(pid: int, parents: dict[int, int]) -> list[int]:
    """The process, its parent, and so on up to the first unknown one."""
    line = []
    while pid in parents and pid not in line:
        line.append(pid)
        pid = parents[pid]
    return line


def _signal(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except (ProcessLookupError, PermissionError):
        return
