"""The front door: HAProxy without checks of its own, and its runtime socket, through which one watchdog turns it.

Exactly one of a backend's two servers is ready, `gpu` or `local`. Both start disabled: an HAProxy that was started
anew lets nobody in before the watchdog has spoken, and so never to the wrong side. Sessions of the other side are
closed at every turn, for all ports in one command line: no port flaps by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.domain.watch import Side
from common.host.ports import Service

RUNTIME = "haproxy.sock"
"""In the agent's folder; unix sockets have short names."""
ASK_S = 1.0
"""HAProxy answers its runtime socket within a millisecond, or not at all."""
CONNECTIONS_MAX = 400
"""Two descriptors each: what a container is granted at least, 1,024, is not to be raised for."""
RUNNING = "2"
"""`srv_op_state` (HAProxy's management guide, "show servers state")."""
NOBODY = "127.0.0.1"
"""The GPU's address until there is one."""


class Unavailable(Exception):
    """HAProxy did not answer, or not with what was asked."""


def config(*, runtime: Path, services: Sequence[Service], host: str = "", user: str | None = None) -> str:
    """haproxy.cfg; `host` = the address to listen on (empty = all), `runtime` = the path of its runtime socket."""
    drop = f"\n    user {user}\n    group {user}" if user else ""
    listens = "".join(_listen(service, host) for service in services)
    return f"""# Written by `dumont-host standby`. No checks: one watchdog turns all ports over the runtime socket.
global
    stats socket {runtime} mode 600 level admin
    maxconn {CONNECTIONS_MAX}{drop}

defaults
    mode tcp
    timeout connect 5s
    timeout client 12h
    timeout server 12h
    timeout tunnel 12h
    timeout client-fin 30s
    timeout server-fin 30s
    option clitcpka
    option srvtcpka
    retries 1
{listens}"""


def _listen(service: Service, host: str) -> str:
    return f"""
listen {service.name}
    bind {host or "*"}:{service.door_port}
    server gpu {NOBODY}:{service.inner_port} disabled on-marked-down shutdown-sessions
    server local 127.0.0.1:{service.inner_port} disabled backup on-marked-down shutdown-sessions
"""


@dataclass(frozen=True)
class Door:
    """HAProxy's runtime socket, of the services that it was configured with."""

    runtime: Path
    services: Sequence[Service]

    async def turn(self, side: Side, gpu_address: str | None) -> None:
        """All ports to `side`; sessions of the other one are closed. Raises `Unavailable`.

        `gpu_address` is where the GPU's ports are found; without one they are found nowhere.
        """
        away, to = ("gpu", "local") if side is Side.STANDBY else ("local", "gpu")
        words = [f"set server {each.name}/{away} state maint" for each in self.services]
        words += [f"shutdown sessions server {each.name}/{away}" for each in self.services]
        if side is Side.GPU:
            words += [
                f"set server {each.name}/gpu addr {gpu_address or NOBODY} port {each.inner_port}"
                for each in self.services
            ]
        words += [f"set server {each.name}/{to} state ready" for each in self.services]
        await self._ask(";".join(words))
        if await self.state() != (side, gpu_address if side is Side.GPU else None):
            raise Unavailable(f"the door does not stand on {side}")

    async def state(self) -> tuple[Side, str | None] | None:
        """To which side all ports lead, and the GPU's address if it is that one; None when they do not agree."""
        sides = set()
        for line in (await self._ask("show servers state")).splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] in {each.name for each in self.services} and fields[5] == RUNNING:
                sides.add((fields[1], fields[3], fields[4]))
        if {name for name, _, _ in sides} != {each.name for each in self.services} or len(sides) != len(self.services):
            return None
        servers = {(server, address if server == "gpu" else None) for _, server, address in sides}
        if len(servers) != 1:
            return None
        ((server, address),) = servers
        return (Side.GPU, address) if server == "gpu" else (Side.STANDBY, None)

    async def _ask(self, words: str) -> str:
        try:
            async with asyncio.timeout(ASK_S):
                reader, writer = await asyncio.open_unix_connection(str(self.runtime))
                try:
                    writer.write(words.encode() + b"\n")
                    return (await reader.read()).decode(errors="replace")
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{self.runtime}: {error or 'no answer'}") from None
