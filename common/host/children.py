"""Programs that are kept running: started again when they end, found again by whoever started them and was restarted.

They outlive their keeper: an agent that crashes must not take the tunnel, and with it the user's sessions, along.
Each stands in a file by its process id and start time, so that no other process is ever taken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.host.atomic import write_atomically

FOLDER = "programs"
AGAIN_S, AGAIN_MAX_S = 0.2, 10.0
"""Until a program that ended is started again; doubled each time, and forgotten once it ran for the longer of them."""
STOP_S = 5.0
"""From SIGTERM to SIGKILL."""
LOG_BYTES_MAX = 1 << 20
"""A log that grew beyond is begun anew at the next start."""

Words = Sequence[str]


@dataclass
class Running:
    pid: int
    started: int
    """Of /proc/<pid>/stat: a process id may be used again, the two together are not."""
    words: list[str]
    since_s: float
    popen: subprocess.Popen[bytes] | None = None
    """None: an earlier keeper started it."""

    @property
    def is_alive(self) -> bool:
        is_there = started(self.pid) == self.started
        # Asked second: one that ended in between is then fetched from the kernel, and no remains of it stay.
        has_ended = self.popen is not None and self.popen.poll() is not None
        return is_there and not has_ended


def started(pid: int) -> int | None:
    """When this process was started, in ticks since the machine was; None = there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass
class Children:
    """`clock` is steady, in seconds. Nothing here waits: `tend` is called as often as its keeper looks around."""

    home: Path
    clock: Callable[[], float]
    ends: Mapping[str, signal.Signals] = field(default_factory=dict)
    """Names of those that are ended by another signal than SIGTERM, which means something else to them."""
    wanted: dict[str, list[str]] = field(default_factory=dict)
    _running: dict[str, Running] = field(default_factory=dict, init=False)
    _ending: list[tuple[Running, float]] = field(default_factory=list, init=False)
    _again_s: dict[str, float] = field(default_factory=dict, init=False)
    _due_s: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._folder = self.home / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                kept = json.loads(file.read_bytes())
                found = Running(int(kept["pid"]), int(kept["started"]), list(kept["words"]), self.clock())
                if found.is_alive:
                    self._running[file.stem] = found

    def want(self, programs: Mapping[str, Words]) -> None:
        """Exactly these from now on. One whose words changed is started anew."""
        self.wanted = {name: list(words) for name, words in programs.items()}
        self.tend()

    def tend(self) -> None:
        """Start what is missing, stop what is not wanted."""
        now_s = self.clock()
        for name, running in list(self._running.items()):
            if not running.is_alive:
                self._ended(name, running, now_s)
            elif self.wanted.get(name) != running.words:
                self._end(name, running, now_s)
        for name, words in self.wanted.items():
            if name not in self._running and now_s >= self._due_s.get(name, 0.0):
                self._start(name, words, now_s)
        for running, until_s in list(self._ending):
            if not running.is_alive:
                self._ending.remove((running, until_s))
            elif now_s >= until_s:
                _signal(running, signal.SIGKILL)

    @property
    def is_idle(self) -> bool:
        """Nothing runs, nor is on its way out."""
        return not self._running and not self._ending

    def pids(self) -> frozenset[int]:
        return frozenset(running.pid for running in self._running.values())

    def pid(self, name: str) -> int | None:
        return self._running[name].pid if name in self._running else None

    def signal(self, name: str, what: signal.Signals) -> None:
        if name in self._running:
            _signal(self._running[name], what)

    def restart(self, name: str) -> None:
        """Its settings changed."""
        if name in self._running:
            self._end(name, self._running[name], self.clock())
            self._due_s.pop(name, None)

    def _start(self, name: str, words: list[str], now_s: float) -> None:
        log = self._folder / f"{name}.log"
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.unlink()
        try:
            with open(log, "ab") as out:
                popen = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                )
        except OSError as error:
            with contextlib.suppress(OSError):
                log.write_text(f"{words[0]}: {error}\n")
            self._later(name, now_s)
            return
        began = started(popen.pid)
        self._running[name] = running = Running(popen.pid, began or 0, words, now_s, popen)
        kept = {"pid": running.pid, "started": running.started, "words": words}
        try:
            write_atomically(self._folder / f"{name}.json", json.dumps(kept).encode())
        except OSError:  # the next keeper would not find it, and start another one beside it
            self._end(name, running, now_s)
            self._later(name, now_s)

    def _ended(self, name: str, running: Running, now_s: float) -> None:
        del self._running[name]
        if now_s - running.since_s > AGAIN_MAX_S:
            self._again_s.pop(name, None)
        self._later(name, now_s)

    def _later(self, name: str, now_s: float) -> None:
        again_s = self._again_s.get(name, AGAIN_S)
        self._due_s[name], self._again_s[name] = now_s + again_s, min(2 * again_s, AGAIN_MAX_S)

    def _end(self, name: str, running: Running, now_s: float) -> None:
        """The next one of this name may start at once: it is of other words."""
        del self._running[name]
        _signal(running, self.ends.get(name, signal.SIGTERM))
        self._ending.append((running, now_s + STOP_S))


def _signal(running: Running, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if running.is_alive:
            os.kill(running.pid, what)
