"""The user's processes on a host: every descendant of the init that is neither the agent's own nor the system's."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROUNDS_MAX = 20
"""A process may be forked while the others are being stopped: look again until a round finds nothing new."""

SYSTEM_SERVICE = re.compile(r"^[^:]*:[^:]*:(/system\.slice/[^/]+\.service|/init\.scope)$", re.MULTILINE)
"""In /proc/<pid>/cgroup of a virtual machine: a service of its own, without which it has no network and no names.
What a user logs in to runs in user.slice, and containers in scopes or below a service."""


class Users(Protocol):
    """The user's processes."""

    def users(self) -> Iterator[int]: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@dataclass
class Processes:
    """Stopped by SIGSTOP, continued by SIGCONT. `init` is the root of the machine's process tree."""

    init: int = 1
    spared: Callable[[], frozenset[int]] = frozenset
    """Programs of ours that the agent did not start itself, and what they started."""

    def freeze(self) -> None:
        stopped: set[int] = set()
        for _ in range(ROUNDS_MAX):
            running = [pid for pid in self.users() if pid not in stopped]
            if not running:
                return
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            stopped.update(running)

    def thaw(self) -> None:
        for pid in self.users():
            _signal(pid, signal.SIGCONT)

    def users(self) -> Iterator[int]:
        """Pids of the user's own processes."""
        parents = dict(_parents())
        spared, ours = {self.init, *_line_of(os.getpid(), parents)}, {os.getpid(), *self.spared()}
        for pid in parents:
            line = _line_of(pid, parents)
            if pid not in spared and self.init in line and ours.isdisjoint(line) and not self._is_systems(pid):
                yield pid

    def _is_systems(self, pid: int) -> bool:
        """Only a tree that is a whole machine's, where pid 1 is systemd itself, holds the system's own services."""
        return self.init == 1 and is_system_service(_cgroup(1)) and is_system_service(_cgroup(pid))


def is_system_service(cgroup: str) -> bool:
    """Does /proc/<pid>/cgroup say that the process belongs to a service of the machine's own system?"""
    return SYSTEM_SERVICE.search(cgroup) is not None


def _cgroup(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except OSError:
        return ""


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the kernel cuts a name at 15 bytes, in the middle of a letter too
                after_name = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
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
