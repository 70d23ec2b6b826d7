"""Signs of life besides the GPU: what the user's processes did between two looks at them. Pure.

A signal that could not be read is a sign as well: unknown is never idle. Thresholds are those below which a machine
that nobody uses stays (a shell, an idle notebook server, an editor's remote end), not those of light work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

CPU = "cpu"
DISK = "disk"
NETWORK = "network"
SSH = "ssh"
TERMINAL = "terminal"
KERNEL = "kernel"
"""A notebook kernel that executes something, even if it only waits."""
COMPILE = "compile"
LEASE = "keep_alive"
UNKNOWN = "unknown"
"""A signal could not be read; `unknown:cpu` and the like say which."""

BUSY_CPU_PERCENT = 20.0
"""Of one core, all the user's processes together."""
BUSY_DISK_BYTES_PER_S = 1 << 20
"""Read from and written to disks."""
BUSY_NETWORK_BYTES_PER_S = 128 << 10
"""Both ways, over TCP: about 1 Mbit/s."""
BUSY_SSH_BYTES_PER_S = 256
"""Received by ssh: somebody types or an editor sends; keepalives stay well below."""
COMPILERS = frozenset(
    {
        "cc1", "cc1plus", "collect2", "ld", "ld.lld", "lld", "mold", "as", "gcc", "g++", "clang", "clang++",
        "nvcc", "cicc", "ptxas", "cudafe++", "fatbinary", "nvlink",
        "make", "ninja", "cmake", "cargo", "rustc", "go", "bazel", "javac",
    }
)  # fmt: skip
"""Names of processes that are there only while something is built."""

Key = tuple[int, int]
"""A process: its pid and the tick at which it started, so that a later one with the same pid is another."""


@dataclass(frozen=True)
class Reading:
    """The user's processes at one moment. Counters only rise; a process or connection that is new began at zero."""

    at: datetime
    cpu_s: Mapping[Key, float] = field(default_factory=dict)
    """Of each process, the children that it waited for included."""
    disk_bytes: Mapping[Key, int] = field(default_factory=dict)
    network_bytes: Mapping[int, int] = field(default_factory=dict)
    """Per connection of theirs."""
    ssh_bytes: Mapping[int, int] = field(default_factory=dict)
    """Received, per ssh session."""
    terminal_read_at: Mapping[str, float] = field(default_factory=dict)
    """When somebody's input was last read from each of their terminals."""
    names: frozenset[str] = frozenset()
    """Of their programs."""
    busy_kernels: int = 0
    lease_until: datetime | None = None
    missing: frozenset[str] = frozenset()
    """Signals that could not be read."""


def signs(before: Reading | None, now: Reading) -> tuple[str, ...]:
    """In alphabetical order. Without an earlier reading no rate is known."""
    seconds = (now.at - before.at).total_seconds() if before else 0.0
    if before is None or seconds <= 0:
        return (UNKNOWN,)
    found = {
        CPU: _growth(before.cpu_s, now.cpu_s) * 100 >= BUSY_CPU_PERCENT * seconds,
        DISK: _growth(before.disk_bytes, now.disk_bytes) >= BUSY_DISK_BYTES_PER_S * seconds,
        NETWORK: _growth(before.network_bytes, now.network_bytes) >= BUSY_NETWORK_BYTES_PER_S * seconds,
        SSH: _growth(before.ssh_bytes, now.ssh_bytes) >= BUSY_SSH_BYTES_PER_S * seconds,
        TERMINAL: any(at != before.terminal_read_at.get(name) for name, at in now.terminal_read_at.items()),
        KERNEL: now.busy_kernels > 0,
        COMPILE: bool(now.names & COMPILERS),
        LEASE: now.lease_until is not None and now.lease_until > now.at,
        **{f"{UNKNOWN}:{signal}": True for signal in now.missing},
    }
    return tuple(sorted(sign for sign, is_there in found.items() if is_there))


def _growth(before: Mapping[Any, float], now: Mapping[Any, float]) -> float:
    """Of all counters together; what has ended since is not known, and what it did is in its parent's count."""
    return sum(max(0.0, value - before.get(key, 0.0)) for key, value in now.items())
