"""What the user's processes on this host do, from /proc: theirs alone, never the machine's as a whole.

Other people's processes (on a shared machine), the agent's own and its engine's are not looked at.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from common.domain import life
from common.domain.life import Key, Reading
from common.host import jupyter, sockets
from common.host.owner import as_owner_of

SSH_PORT = 22
SSH_SERVERS = frozenset({"sshd", "sshd-session", "sshd-auth", "dropbear"})
SECRETIVE = SSH_SERVERS | {"ssh-agent", "gpg-agent"}
"""They show themselves to nobody, and move nothing from disks."""
PTS_MAJORS = range(136, 144)
"""Device numbers of pseudo-terminals (linux/Documentation/admin-guide/devices.txt)."""
SOCKET = re.compile(r"socket:\[(\d+)\]")
UNREADABLE = (OSError, ValueError, KeyError, IndexError, struct.error)
"""What a kernel that writes its files in another way leads to."""
STATES_ENDED = "ZX"
LEASE_FILE = "keep-alive"
"""In the agent's folder: `touch -d '+2 hours' /opt/dumont/keep-alive` keeps the machine awake for so long."""


@dataclass(frozen=True)
class Process:
    """One line of /proc/<pid>/stat, as far as it is needed."""

    pid: int
    name: str
    terminal: str | None
    cpu_s: float
    started: int

    @property
    def key(self) -> Key:
        return self.pid, self.started


@dataclass
class Life:
    """Each call is one look, and compares it with the one before."""

    users: Callable[[], Iterable[int]]
    """Pids of the user's processes."""
    home: Path
    busy_kernels: Callable[[Iterable[int]], int | None] = jupyter.busy_kernels
    """None = a notebook server is there and does not answer."""
    _before: Reading | None = field(default=None, init=False)

    def __call__(self, now: datetime) -> tuple[str, ...]:
        """The signs of life since the last call, which the first one cannot tell."""
        before, self._before = self._before, None
        try:
            self._before = self.read(now)
        except UNREADABLE:
            return (life.UNKNOWN,)
        return life.signs(before, self._before)

    def read(self, now: datetime) -> Reading:
        missing: set[str] = set()
        processes = [process for pid in self.users() if (process := _process(pid))]
        network, ssh = _traffic(processes, missing)
        kernels = self.busy_kernels(process.pid for process in processes)
        if kernels is None:
            missing.add(life.KERNEL)
        return Reading(
            at=now,
            cpu_s={process.key: process.cpu_s for process in processes},
            disk_bytes=_disk(processes, missing),
            network_bytes=network,
            ssh_bytes=ssh,
            terminal_read_at=_terminals(processes),
            names=frozenset(process.name for process in processes),
            busy_kernels=kernels or 0,
            lease_until=_lease(self.home / LEASE_FILE),
            missing=frozenset(missing),
        )


def _process(pid: int) -> Process | None:
    """None: it has ended. Fields as in man 5 proc_pid_stat; the name may hold anything, brackets too."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] in STATES_ENDED:
        return None
    ticks = sum(int(fields[n]) for n in (11, 12, 13, 14))
    return Process(pid, name, _terminal(int(fields[4])), ticks / os.sysconf("SC_CLK_TCK"), int(fields[19]))


def _terminal(device: int) -> str | None:
    major, minor = (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)
    return f"/dev/pts/{(major - PTS_MAJORS[0]) * 256 + minor}" if major in PTS_MAJORS else None


def _terminals(processes: Iterable[Process]) -> Mapping[str, float]:
    """The kernel stamps a terminal when its input is read, at most every 8 seconds."""
    found = {}
    for name in {process.terminal for process in processes if process.terminal}:
        try:
            found[name] = Path(name).stat().st_atime
        except OSError:
            continue  # its terminal was closed
    return found


def _disk(processes: Iterable[Process], missing: set[str]) -> Mapping[Key, int]:
    found = {}
    for process in processes:
        try:
            with as_owner_of(process.pid):
                text = Path(f"/proc/{process.pid}/io").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            if process.name not in SECRETIVE:
                missing.add(life.DISK)
            continue
        counts = dict(line.split(": ") for line in text.splitlines())
        found[process.key] = int(counts["read_bytes"]) + int(counts["write_bytes"])
    return found


def _traffic(processes: list[Process], missing: set[str]) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Bytes per connection: of all of the user's, and received by those of ssh sessions."""
    if not processes:
        return {}, {}
    try:
        all_ = sockets.connections()
    except OSError:
        missing.add(life.NETWORK)
        return {}, {}
    theirs = {inode for process in processes for inode in _inodes(process, missing)}
    has_ssh = any(process.name in SSH_SERVERS for process in processes)
    ssh = [one for one in all_ if has_ssh and one.local_port == SSH_PORT]
    network = {one.inode: one.sent_bytes + one.received_bytes for one in all_ if one.inode in theirs or one in ssh}
    return network, {one.inode: one.received_bytes for one in ssh}


def _inodes(process: Process, missing: set[str]) -> list[int]:
    """Of the sockets that it holds."""
    try:
        with as_owner_of(process.pid):
            links = [_link(entry) for entry in os.scandir(f"/proc/{process.pid}/fd")]
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError:
        if process.name not in SECRETIVE:
            missing.add(life.NETWORK)
        return []
    return [int(match[1]) for link in links if (match := SOCKET.match(link))]


def _link(entry: os.DirEntry[str]) -> str:
    try:
        return str(Path(entry.path).readlink())
    except OSError:
        return ""  # closed meanwhile


def _lease(file: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        return None
