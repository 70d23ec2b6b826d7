"""A rented machine of the demo world: a real process tree in its own directory, running the real start-up script."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUSY_PERCENT = 80
SOCKET_PATH_MAX, SOCKET_NAME_MAX = 107, 24
"""Bytes: of a unix socket's path, as Linux allows them, and of the name of one in the agent's folder."""
APART = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Words that run a command as the first process of a machine of its own: what leaves for another session, as an sshd
does, ends with it all the same."""
INIT = 'export DUMONT_INIT_PID=$$; cd "$HOME" && exec sh "$0"'
"""The tree's root knows its own pid, as a container's init is 1."""


@dataclass(frozen=True)
class Process:
    """A process that is told from a later one with the same pid by its start time."""

    pid: int
    started_ticks: int

    @property
    def alive(self) -> bool:
        return started_ticks(self.pid) == self.started_ticks


def started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None when there is no such process (a zombie counts as none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@functools.cache
def can_be_apart() -> bool:
    """Only root makes namespaces, and not in every container. Without them a machine is one process group."""
    try:
        return subprocess.run([*APART, "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass
class Rental:
    """One machine's directory: home, workspace, the GPU's utilisation, a log."""

    folder: Path
    process: Process | None = None

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def start(self, env: Mapping[str, str], script: str, hardware: Mapping[str, object]) -> None:
        """What a container runtime does: the image's start-up script with the contract's environment."""
        for name in ("home", "workspace", "dumont"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "onstart.sh").write_text(script)
        self.machine_file.write_text(json.dumps(hardware))
        if not self.gpu_file.exists():
            self.set_gpu(BUSY_PERCENT)
        container = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(self.folder / "home"),
            "DUMONT_HOME": str(self._home()),
            "DUMONT_WORKSPACE": str(self.workspace),
            "DUMONT_GPU_FILE": str(self.gpu_file),
            "DUMONT_MACHINE_FILE": str(self.machine_file),
        }
        with open(self.folder / "log", "ab") as log:
            child = subprocess.Popen(
                [*(APART if can_be_apart() else ()), "sh", "-c", INIT, str(self.folder / "onstart.sh")],
                env={**container, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.process = Process(child.pid, started_ticks(child.pid) or 0)

    def _home(self) -> Path:
        """The agent's folder, by a short name where its own is too long for the sockets in it."""
        home = self.folder / "dumont"
        if len(os.fsencode(home)) <= SOCKET_PATH_MAX - SOCKET_NAME_MAX:
            return home
        if not self._link.is_symlink():
            self._link.symlink_to(home)
        return self._link

    @property
    def _link(self) -> Path:
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"dumont-{name}"

    @property
    def machine_file(self) -> Path:
        return self.folder / "machine.json"

    @property
    def ports_file(self) -> Path:
        return self.folder / "ports.json"

    @property
    def gpu_file(self) -> Path:
        return self.folder / "gpu_percent"

    def set_gpu(self, percent: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.gpu_file.with_suffix(".new")
        new.write_text(str(percent))
        new.replace(self.gpu_file)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def signal(self, what: signal.Signals) -> None:
        """To the whole machine: one process group, and where it has one, a process namespace."""
        if self.process and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, what)
            for pid in self._pids_apart():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, what)

    def _pids_apart(self) -> list[int]:
        """Of its own namespace; none where it has none."""
        assert self.process
        try:
            first = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0]
            own, ours = (Path(f"/proc/{pid}/ns/pid").readlink() for pid in (first, "self"))
        except (OSError, IndexError):
            return []
        return [] if own == ours else [pid for pid in _pids() if _namespace(pid) == own]

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process.pid, 0)
        self.process = None
        self._link.unlink(missing_ok=True)

    def wipe(self) -> None:
        """The machine is gone, and its disk with it: at once out of sight, deleted behind the market's answer."""
        self.kill()
        trash = self.folder.parent.parent / "trash" / self.folder.name
        trash.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(trash)
            threading.Thread(target=shutil.rmtree, args=(trash,), kwargs={"ignore_errors": True}, daemon=True).start()


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _namespace(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None
