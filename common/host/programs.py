"""The programs that a machine of a pair runs besides its agent, and what the agent asks of them.

On a GPU host: the tunnel, the heartbeat, the live sync's sender, and an sshd that shows the pair's host key. On a
standby they run under `host.standby`; its agent writes down whom they let in.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.domain.host import Door, Sync
from common.domain.role import NOTHING
from common.errors import NotFound
from common.host import notice, tunnel
from common.host.children import Children, started
from common.host.epoch import Epoch
from common.host.pair import LEAVE, Kept
from common.host.ports import Ports
from common.host.writers import Processes

STANDING_FILE = "livesync.json"
"""How this machine's end of the live sync stands: a `Sync`, written by it."""
WROTE_HERE = "wrote.here"
"""This standby has been the writer, and its users' processes have not been ended since."""
NOBODY = -1
"""No process has this number."""
SSHD_CONFIG = "sshd_config"
SSHD_S = 10
SSHD_AGAIN_S = 5.0


class Programs(Protocol):
    """A test and the simulation bring their own."""

    def follow(self, kept: Kept) -> None:
        """Start, stop or change what the record's words ask for. The same words again change nothing."""

    def tend(self) -> None:
        """Start again what died; called often."""

    def pids(self) -> frozenset[int]:
        """Of the programs: no processes of the user's, which a freeze would hold still."""

    def sync(self) -> Sync | None:
        """How this machine's copy stands; None: it has none to speak of."""

    def mark(self, above: int) -> int:
        """The sequence number, above `above`, of a snapshot that is begun now: what changed before has a lower one."""

    def tunnel_key(self) -> str | None:
        """The public key that this machine dials with; None: it cannot dial."""

    def door(self) -> Door | None:
        """Where others may dial in here."""

    def farewell(self) -> None:
        """The machine is being stopped by somebody else: say so to the other one."""

    def stop(self) -> None:
        """The record wants nothing of this machine any more."""


class Alone:
    """A machine of no pair."""

    def follow(self, kept: Kept) -> None:
        """Nothing to run."""

    def tend(self) -> None:
        """Nothing runs."""

    def pids(self) -> frozenset[int]:
        return frozenset()

    def sync(self) -> Sync | None:
        return None

    def mark(self, above: int) -> int:
        return above + 1

    def tunnel_key(self) -> str | None:
        return None

    def door(self) -> Door | None:
        return None

    def farewell(self) -> None:
        """Nobody to say it to."""

    def stop(self) -> None:
        """Nothing runs."""


def host_program(*words: str) -> list[str]:
    """The bundle's own program, or this interpreter's module when not in a bundle."""
    program = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "common.host.main"]
    return [*program, *words]


def livesync(verb: str, workspace: Path, home: Path, label: str, *at: str) -> list[str]:
    """The words of one end of the live sync: `livesync-send` or `livesync-receive`. `at` = where they meet."""
    return host_program(verb, "--workspace", str(workspace), "--home", str(home), "--label", label, *at)


def sync_of(home: Path, label: str) -> Sync | None:
    """Of the writer, what its sender says; of who takes, what is on its disk, whatever its receiver said last."""
    role, said = Epoch(home, label).read(), standing(home)
    if role.is_writer:
        return said
    version: dict[str, Any] = {"epoch": role.version.epoch, "seq": role.version.seq, "is_whole": role.is_whole}
    return (said or Sync()).model_copy(update={**version, "peer": role.view.writer})


def standing(home: Path) -> Sync | None:
    try:
        return Sync.model_validate_json((home / STANDING_FILE).read_bytes())
    except (OSError, ValueError):
        return None  # it never ran, or is of another version


@dataclass
class GpuPrograms:
    """Of a GPU host. Without a workspace nothing of it is synchronised."""

    home: Path
    label: str
    ports: Ports
    clock: Callable[[], float]
    workspace: Path | None = None
    keys: str = tunnel.USER_KEYS
    _kept: Kept | None = field(default=None, init=False)
    _sshd_due_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._children = Children(self.home, self.clock, ends={"beats": LEAVE})

    def follow(self, kept: Kept) -> None:
        self._kept = kept
        if kept.ssh_host_key and tunnel.keep_host_key(self.home, kept.ssh_host_key):
            self._stop_sshd()
        self._children.want(self._wanted(kept))

    def _wanted(self, kept: Kept) -> Mapping[str, list[str]]:
        door, is_writer = kept.door, kept.writer == self.label
        if door is None or self.label not in (kept.writer, kept.cand) or self.tunnel_key() is None:
            return {}
        way = {"host": door["host"], "ssh_port": int(door["ssh_port"]), "user": door["user"]}
        way |= {name: door.get(name) for name in ("inner_ports", "sync_port", "status_port")}
        wanted = {"tunnel": tunnel.dial(self.home, self.label, **way, host_key=door["host_key"], ports=self.ports)}
        if is_writer and kept.key:
            wanted["beats"] = host_program("beats", str(self.home))
        if self.workspace and is_writer:
            at = ("--port", str(self.ports.sync))
            wanted["livesync-send"] = livesync("livesync-send", self.workspace, self.home, self.label, *at)
        elif self.workspace and Epoch(self.home, self.label).read().version > NOTHING:
            # a candidate is filled from the snapshot first: two that write the same tree would trip each other
            at = ("--unix", str(self.home / tunnel.TAKES))
            wanted["livesync-receive"] = livesync("livesync-receive", self.workspace, self.home, self.label, *at)
        return wanted

    def tend(self) -> None:
        self._children.tend()
        if self._kept and self._kept.ssh_host_key and self.clock() >= self._sshd_due_s:
            self._sshd_due_s = self.clock() + SSHD_AGAIN_S
            self._require_sshd()

    def _require_sshd(self) -> None:
        """It leaves for a life of its own: what the user starts in it is the user's, and freezes with it."""
        if self._sshd_pid() is not None:
            return
        config = self.home / SSHD_CONFIG
        port, keys = self.ports.ssh.gpu_port, self.keys
        try:
            config.write_text(tunnel.user_sshd_config(host="127.0.0.1", port=port, home=self.home, keys=keys))
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
            words = [tunnel.program("sshd"), "-f", str(config), "-E", str(self.home / "sshd.log")]
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SSHD_S)
        except (NotFound, OSError, subprocess.TimeoutExpired):
            return  # tried again; until then the probe of the watchdog finds nobody, and the beats count alone

    def _sshd_pid(self) -> int | None:
        """Told by the file that it was started with: after a restart of the machine another may have its number."""
        try:
            pid = int((self.home / "sshd.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        is_it = started(pid) is not None and bytes(self.home / SSHD_CONFIG) in words
        return pid if is_it else None

    def _stop_sshd(self) -> None:
        """The listener alone: who is logged in stays."""
        if pid := self._sshd_pid():
            os.kill(pid, signal.SIGTERM)
        self._sshd_due_s = 0.0

    def pids(self) -> frozenset[int]:
        return self._children.pids()

    def sync(self) -> Sync | None:
        return sync_of(self.home, self.label) if self._kept else None

    def mark(self, above: int) -> int:
        """The sender numbers changes; a snapshot holds all that it has numbered so far."""
        sync = self.sync()
        return max(above + 1, sync.seq if sync else 0)

    def tunnel_key(self) -> str | None:
        try:
            return tunnel.require_key(self.home / tunnel.KEY)
        except (NotFound, OSError, subprocess.SubprocessError):
            return None  # no ssh on this image: the instance stays without a mirror, and says so

    def door(self) -> Door | None:
        return None

    def farewell(self) -> None:
        self._children.signal("beats", signal.SIGTERM)

    def stop(self) -> None:
        self._children.want({})


@dataclass(frozen=True)
class StandbyUsers:
    """The user's processes on a standby: what lives below `dumont-host users`, which may have been started anew."""

    home: Path

    def users(self) -> Iterator[int]:
        return self._below().users()

    def freeze(self) -> None:
        self._below().freeze()

    def thaw(self) -> None:
        self._below().thaw()

    def _below(self) -> Processes:
        return Processes(init=Children(self.home, lambda: 0.0).pid("users") or NOBODY)


@dataclass
class StandbyPrograms:
    """Of a standby: its programs run beside its agent, and read what it writes down."""

    home: Path
    label: str
    ports: Ports
    address: str
    user: str = tunnel.USER

    def follow(self, kept: Kept) -> None:
        self._let_users_go(is_writer=kept.writer == self.label)
        tunnel.write_keys(self.home, tunnel.authorized_keys(kept.tunnel_keys, self.ports))
        if kept.ssh_host_key:
            tunnel.keep_host_key(self.home, kept.ssh_host_key)

    def _let_users_go(self, *, is_writer: bool) -> None:
        """Whose role goes back to a GPU has users no more: what still ran would change the mirror under its feet."""
        mark = self.home / WROTE_HERE
        if is_writer:
            mark.touch()
        elif mark.exists():
            for pid in StandbyUsers(self.home).users():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            mark.unlink()

    def tend(self) -> None:
        """`host.standby` does."""

    def pids(self) -> frozenset[int]:
        return frozenset()

    def sync(self) -> Sync | None:
        said, watchdog = sync_of(self.home, self.label) or Sync(), notice.read(self.home)
        heard = {"rtt_ms": watchdog.get("rtt_ms"), "hears": watchdog.get("is_watched") is True}
        return said.model_copy(update=heard)

    def mark(self, above: int) -> int:
        return max(above, Epoch(self.home, self.label).read().version.seq) + 1

    def tunnel_key(self) -> str | None:
        return None

    def door(self) -> Door | None:
        try:
            key = tunnel.require_key(self.home / tunnel.HOST_KEY)
        except (NotFound, OSError, subprocess.SubprocessError):
            return None
        host_key = " ".join(key.split()[:2])
        inner = {service.name: service.inner_port for service in self.ports.services}
        return Door(
            host=self.address,
            host_key=host_key,
            ssh_port=self.ports.tunnel,
            udp_port=self.ports.beats,
            user=self.user,
            user_port=self.ports.ssh.door_port,
            inner_ports=inner,
            sync_port=self.ports.sync,
            status_port=self.ports.status,
        )

    def farewell(self) -> None:
        """A standby that goes is missed by its silence."""

    def stop(self) -> None:
        """It ends with the machine."""
