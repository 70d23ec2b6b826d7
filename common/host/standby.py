"""What runs on a standby, started and kept running: the front door, two sshd, the watchdog, the receiver, the agent.

    dumont-host standby

Its environment: DUMONT_HOME, DUMONT_LABEL, DUMONT_URL and DUMONT_WORKSPACE as on a GPU host; DUMONT_ADDRESS (where the
world reaches this machine), DUMONT_PORTS (`host.ports`), DUMONT_TUNNEL_USER, DUMONT_AUTHORIZED_KEYS (of the user, as in
sshd_config), DUMONT_LISTEN (the address to listen on; empty = all). For tests and measurements: DUMONT_LEASE_S fixes
the lease, DUMONT_PROGRAMS names those that are to run, DUMONT_TERMINALS is where terminals are.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import NotFound
from common.host import haproxy, notice, pair, tunnel
from common.host.children import Children
from common.host.ports import Ports, ports_of
from common.host.programs import StandbyPrograms, host_program, livesync
from common.host.watchdog import Watchdog, poster

LOOK_EVERY_S = 0.1
PR_SET_CHILD_SUBREAPER = 36
STOP_ROUNDS = 60
"""Of LOOK_EVERY_S each, for the programs to end after SIGTERM."""


@dataclass(frozen=True)
class Setting:
    home: Path
    label: str
    url: str
    workspace: Path
    address: str
    ports: Ports
    tunnel_user: str = tunnel.USER
    fixed_lease_s: float | None = None
    listen: str = ""
    keys: str = tunnel.USER_KEYS
    only: tuple[str, ...] = ()
    """Names of programs that run; empty = all."""
    terminals: Path = notice.TERMINALS


def setting_of(env: Mapping[str, str]) -> Setting:
    """Raises ValueError or KeyError for an environment that is none of a standby."""
    return Setting(
        home=Path(env.get("DUMONT_HOME", "/opt/dumont")),
        label=env["DUMONT_LABEL"],
        url=env["DUMONT_URL"],
        workspace=Path(env.get("DUMONT_WORKSPACE", "/workspace")),
        address=env.get("DUMONT_ADDRESS", "127.0.0.1"),
        ports=ports_of(env),
        tunnel_user=env.get("DUMONT_TUNNEL_USER", tunnel.USER),
        fixed_lease_s=float(env["DUMONT_LEASE_S"]) if env.get("DUMONT_LEASE_S") else None,
        listen=env.get("DUMONT_LISTEN", ""),
        keys=env.get("DUMONT_AUTHORIZED_KEYS", tunnel.USER_KEYS),
        only=tuple(filter(None, env.get("DUMONT_PROGRAMS", "").split(","))),
        terminals=Path(env.get("DUMONT_TERMINALS", notice.TERMINALS)),
    )


def programs_of(setting: Setting) -> StandbyPrograms:
    """What the standby's agent writes down for the others."""
    return StandbyPrograms(setting.home, setting.label, setting.ports, setting.address, setting.tunnel_user)


def prepare(setting: Setting) -> dict[str, list[str]]:
    """Write the settings of all programs; name -> words. Raises `NotFound` for a program that is not installed."""
    home, ports = setting.home, setting.ports
    home.mkdir(parents=True, exist_ok=True)
    setting.workspace.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    tunnel.require_key(home / tunnel.HOST_KEY)
    if not (home / tunnel.AUTHORIZED).exists():
        tunnel.write_keys(home, "")
    door, inner, outer = home / "haproxy.cfg", home / "sshd_config", home / "tunnel.sshd_config"
    door.write_text(haproxy.config(runtime=home / haproxy.RUNTIME, services=ports.services, host=setting.listen))
    inner.write_text(tunnel.user_sshd_config(host="127.0.0.1", port=ports.ssh.inner_port, home=home, keys=setting.keys))
    listen = setting.listen or "0.0.0.0"
    outer.write_text(tunnel.tunnel_sshd_config(home=home, port=ports.tunnel, user=setting.tunnel_user, host=listen))
    sshd = [tunnel.program("sshd"), "-D", "-e", "-f"]
    return {
        "haproxy": [tunnel.program("haproxy"), "-db", "-f", str(door)],
        "tunnel-sshd": [*sshd, str(outer)],
        "users": host_program("users", *sshd, str(inner)),
        "watchdog": host_program("watchdog"),
        "agent": host_program("agent"),
    }


def sync_words(setting: Setting) -> dict[str, list[str]]:
    """The mirror receives; who writes itself sends to its candidate, by the way that the candidate has dialled."""
    kept, port = pair.read(setting.home), str(setting.ports.sync)
    if kept is None or kept.writer != setting.label:
        return {"livesync-receive": livesync("livesync-receive", *_sync_place(setting), "--port", port)}
    if kept.cand is None:
        return {}
    at = ("--host", tunnel.address_of(kept.cand), "--port", port)
    return {"livesync-send": livesync("livesync-send", *_sync_place(setting), *at)}


def _sync_place(setting: Setting) -> tuple[Path, Path, str]:
    return setting.workspace, setting.home, setting.label


async def serve(setting: Setting) -> None:
    """Until SIGTERM. The user's sshd waits for the pair's host key, and is started anew with another one."""
    words, only = prepare(setting), setting.only
    wanted = {name: line for name, line in words.items() if not only or name in only}
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, is_over.set)
    os.environ["DUMONT_KIND"] = "standby"  # its agent is told by the environment that it inherits
    children, key, shown = Children(setting.home, loop.time), setting.home / tunnel.USER_HOST_KEY, None
    while not is_over.is_set():
        stamp = key.stat().st_mtime_ns if key.exists() else None
        if shown is not None and stamp != shown:
            children.restart("users")
        shown = stamp
        now_wanted = {name: line for name, line in wanted.items() if name != "users" or stamp is not None}
        now_wanted |= {name: line for name, line in sync_words(setting).items() if not only or name in only}
        children.want(now_wanted)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await is_over.wait()
    await _stop(children)


async def _stop(children: Children) -> None:
    children.want({})
    for _ in range(STOP_ROUNDS):
        if children.is_idle:
            return
        await asyncio.sleep(LOOK_EVERY_S)
        children.tend()


def hold_users(words: Sequence[str]) -> int:
    """The root of the users' processes: whatever they leave behind stays below it, and so a freeze finds it.

    Runs `words` (their sshd), ends with it, and passes SIGTERM on. The exit code is the program's.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.posix_spawn(words[0], list(words), os.environ)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


async def watch(setting: Setting) -> None:
    """The watchdog and `/status`, for ever."""
    home, label, ports = setting.home, setting.label, setting.ports
    door, terminals = haproxy.Door(home / haproxy.RUNTIME, ports.services), setting.terminals
    dog = Watchdog(
        home,
        label,
        door,
        poster(home, setting.url, label),
        port=ports.beats,
        host=setting.listen or "0.0.0.0",
        probe_port=ports.ssh.inner_port,
        fixed_lease_s=setting.fixed_lease_s,
        tell=lambda message: notice.tell_terminals(message, terminals),
    )
    async with await notice.serve(home, ports.status), await notice.serve_socket(home, home / tunnel.STATUS):
        await dog.run()


def command(words: Sequence[str], env: Mapping[str, str]) -> int:
    """`standby`, `watchdog` and `users`; the exit code."""
    if words[0] == "users":
        return hold_users(words[1:])
    try:
        setting = setting_of(env)
    except (KeyError, ValueError) as error:
        print(f"dumont-host {words[0]}: {error}", file=sys.stderr)
        return 2
    try:
        if words[0] == "watchdog":
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
            asyncio.run(watch(setting))
        else:
            asyncio.run(serve(setting))
    except NotFound as error:
        print(f"dumont-host {words[0]}: {error}", file=sys.stderr)
        return 1
    return 0
