"""A GPU host and its standby, each a tree of real processes with a workspace at the same path, and ways to hurt them.

Needs root: each side has process and mount namespaces of its own (and, in the bench, a network), so that one signal
reaches all of it, what has left for a life of its own too. The record's words are written by hand.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.domain.role import View
from common.domain.version import Version
from common.host import notice, pair, tunnel
from common.host.epoch import Epoch
from common.host.ports import Ports, Service
from infra.local.ports import fresh_ports

ROOT = Path(__file__).resolve().parents[1]
GPU, STANDBY = "dumont-bench-box-1-aaaaaaaa", "dumont-bench-box-2-bbbbbbbb"
WORKSPACE = Path("/mnt")
"""Where each side mounts its own: a folder that every Linux has."""
USERS = """root:x:0:0:root:/root:/bin/sh
sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin
"""
"""Of each side: sshd insists on a user of that name, and not every machine that runs tests has one."""
RECEIVER = ("livesync-receive",)
WITHIN_S = 30.0


def can_run() -> str | None:
    """Why not, or None."""
    if os.geteuid() != 0:
        return "only root makes namespaces"
    missing = [name for name in ("haproxy", "sshd", "ssh", "unshare", "mount") if not _is_there(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True)
    return f"no namespaces: {tried.stderr.decode().strip()}" if tried.returncode else None


def _is_there(name: str) -> bool:
    return bool(shutil.which(name) or shutil.which(name, path=tunnel.SBIN))


def loopback_ports() -> Ports:
    free = iter(fresh_ports(13))

    def service(name: str) -> Service:
        return Service(name, next(free), next(free), next(free))

    services = {name: service(name) for name in ("ssh", "jupyter", "http")}
    return Ports(**services, tunnel=next(free), beats=next(free), status=next(free), sync=next(free))


def until(what: Callable[[], Any], *, within_s: float = WITHIN_S, every_s: float = 0.02, why: str = "") -> Any:
    """Its first true answer."""
    ends_s = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < ends_s, f"not within {within_s} s: {why}"
        time.sleep(every_s)
    return found


@dataclass
class Side:
    """`network` = words that run a command in its network."""

    name: str
    label: str
    home: Path
    workspace: Path
    ports: Ports
    network: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    tree: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        self.workspace.mkdir(exist_ok=True)
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DUMONT_LABEL": self.label, "HOME": "/root"}
        env |= {"DUMONT_HOME": str(self.home), "DUMONT_WORKSPACE": str(WORKSPACE)}
        env |= {"DUMONT_PORTS": json.dumps(asdict(self.ports)), **self.env}
        users = self.home / "passwd"
        users.write_text(USERS)
        mounts = f"mount --bind {self.workspace} {WORKSPACE} && mount --bind {users} /etc/passwd"
        enter = f'mount --make-rprivate / && {mounts} && exec "$@"'
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", enter, "sh"]
        words = [*self.network, *own, sys.executable, "-m", "tests.pair_side", self.name, str(self.home)]
        with open(self.home / "side.log", "ab") as log:
            self.tree = subprocess.Popen(words, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def pids(self) -> list[int]:
        """Of all processes in its namespace, as they are seen from outside; the first of them first."""
        init = self.init()
        own = Path(f"/proc/{init}/ns/pid").readlink() if init else None
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if own and (entry / "ns/pid").readlink() == own:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return sorted(found)

    def init(self) -> int | None:
        """Its first process; None once it is gone."""
        if self.tree is None or self.tree.poll() is not None:
            return None
        children = Path(f"/proc/{self.tree.pid}/task/{self.tree.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def signal(self, what: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):  # a command of a moment, a probe's for example
                os.kill(pid, what)

    def kill(self) -> None:
        """Every process of it, at once: the kernel ends a namespace with its first process."""
        if init := self.init():
            os.kill(init, signal.SIGKILL)

    def end(self) -> None:
        if self.tree:
            self.kill()
            self.tree.kill()
            self.tree.wait()


@dataclass
class PairWorld:
    """`door` = where the GPU finds the standby: directly, or through something that can be cut."""

    folder: Path
    ports: Ports
    lease_s: float | None = 1.0
    gpu_network: Sequence[str] = ()
    standby_network: Sequence[str] = ()
    door_host: str = "127.0.0.1"
    door_ssh_port: int | None = None
    door_udp_port: int | None = None
    url: str = "http://127.0.0.1:9"
    syncs: bool = False
    """The workspace is mirrored by the product's live sync; else both sides hold what the test puts there."""
    rev: int = 0
    epoch: int = 0

    @classmethod
    def temporary(cls, **more: Any) -> PairWorld:
        """In a folder whose parents only root may write to: sshd insists on it."""
        return cls(
            Path(tempfile.mkdtemp(prefix="dumont-pair-", dir="/run")), more.pop("ports", loopback_ports()), **more
        )

    def __post_init__(self) -> None:
        (self.folder / "pts").mkdir()
        self.user_key = self.folder / "user_key"
        public = tunnel.require_key(self.user_key)
        keys = self.folder / "authorized_keys"
        keys.write_text(public + "\n")
        tunnel.require_key(self.folder / "pair_key")
        self.host_key = (self.folder / "pair_key").read_text()
        host_public = (self.folder / "pair_key.pub").read_text().split()[:2]
        (self.folder / "known_hosts").write_text(f"box {' '.join(host_public)}\n")
        (self.folder / "known_hosts").chmod(0o644)
        env = {"DUMONT_AUTHORIZED_KEYS": str(keys), **({"SYNCS": "1"} if self.syncs else {})}
        more = {
            "DUMONT_URL": self.url,
            "DUMONT_TUNNEL_USER": "root",
            "DUMONT_PROGRAMS": ",".join(("haproxy", "tunnel-sshd", "users", "watchdog", *RECEIVER[: self.syncs])),
            "DUMONT_TERMINALS": str(self.folder / "pts"),
            **({"DUMONT_LEASE_S": str(self.lease_s)} if self.lease_s else {}),
        }
        if self.door_host == "127.0.0.1":
            more["DUMONT_LISTEN"] = "127.0.0.1"
        self.gpu = self._side("gpu", GPU, self.gpu_network, env)
        self.standby = self._side("standby", STANDBY, self.standby_network, env | more)
        for side in (self.gpu, self.standby):
            side.home.mkdir()
        tunnel.require_key(self.gpu.home / tunnel.KEY)
        tunnel.require_key(self.standby.home / tunnel.HOST_KEY)
        (self.standby.home / "state.json").write_text(json.dumps({"token": "t"}))

    def _side(self, name: str, label: str, network: Sequence[str], env: dict[str, str]) -> Side:
        return Side(name, label, self.folder / name, self.folder / f"{name}.work", self.ports, network, env)

    # --- the record's words

    def attach(self) -> None:
        """A new epoch in which the GPU writes and the standby mirrors it; both hear of it."""
        self.say(writer=GPU, mirror=STANDBY, refusals_of=self.epoch)  # after an earlier seal nothing was done there
        if not self.syncs:
            Epoch(self.standby.home, STANDBY).restored(Version(epoch=self.epoch, seq=1))

    def say(self, *, writer: str | None, mirror: str | None, next_epoch: bool = True, refusals_of: int = 0) -> None:
        self.rev, self.epoch = self.rev + 1, self.epoch + next_epoch
        words = {"rev": self.rev, "epoch": self.epoch, "writer": writer, "mirror": mirror, "standby": STANDBY}
        key, gpu_key = secrets.token_hex(32), (self.gpu.home / f"{tunnel.KEY}.pub").read_text()
        host_key = (self.standby.home / f"{tunnel.HOST_KEY}.pub").read_text()
        door = {"host": self.door_host, "user": "root", "host_key": host_key}
        door |= {
            "ssh_port": self.door_ssh_port or self.ports.tunnel,
            "udp_port": self.door_udp_port or self.ports.beats,
        }
        more: dict[str, Any] = {"key": key, "ssh_host_key": self.host_key, "tunnel_keys": {GPU: gpu_key}}
        for side in (self.standby, self.gpu):
            kept = pair.Kept(label=side.label, door=door if side is self.gpu else None, **words, **more)
            pair.keep(side.home, kept)
            if side is self.standby:
                tunnel.write_keys(side.home, tunnel.authorized_keys(kept.tunnel_keys, self.ports))
                tunnel.write_secret(side.home / tunnel.USER_HOST_KEY, self.host_key)
            Epoch(side.home, side.label).hear(View(**words, refusals_of=refusals_of))

    # --- what there is to see

    @property
    def status(self) -> dict[str, Any]:
        return notice.read(self.standby.home)

    def until_watched(self) -> None:
        """The GPU beats, its tunnel stands, and the door leads to it."""
        until(lambda: self.status.get("epoch") == self.epoch and self.status.get("is_watched"), why="no beat came")

    def until_whole(self) -> None:
        """The live sync has proven that both workspaces are equal in this epoch."""

        def is_whole() -> bool:
            role = Epoch(self.standby.home, STANDBY).read()
            return role.is_whole and role.version.epoch == self.epoch

        until(is_whole, why="the copy is not whole")

    def ssh(
        self, *words: str, host: str = "127.0.0.1", network: Sequence[str] = (), timeout_s: float = 10.0
    ) -> subprocess.CompletedProcess[str]:
        """As the user does it, whose known host is the pair's key."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "HostKeyAlias=box", f"ConnectTimeout={int(timeout_s)}"]
        options += [f"UserKnownHostsFile={self.folder / 'known_hosts'}", "GlobalKnownHostsFile=/dev/null"]
        command = [*network, "ssh", "-F", "/dev/null", "-i", str(self.user_key), "-p", str(self.ports.ssh.door_port)]
        command += [word for option in options for word in ("-o", option)]
        return subprocess.run(
            [*command, f"root@{host}", *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )

    def end(self) -> None:
        for side in (self.gpu, self.standby):
            side.end()
        shutil.rmtree(self.folder, ignore_errors=True)
