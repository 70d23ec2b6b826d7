"""The user is told where they are: a status file, the same over loopback HTTP, and a line on their terminals.

`GET /status` answers with the file, to any origin: an editor in a browser asks it from a page of another port. It holds
nothing secret. Terminals are those in `/dev/pts` that belong to somebody who may log in here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.domain.role import Role
from common.domain.watch import Reason, Side, side_of

if TYPE_CHECKING:
    import asyncio

STATUS, MOTD = "status.json", "motd"
REQUEST_BYTES_MAX, REQUEST_S = 8192, 2.0
TERMINALS_MAX = 1000
TERMINALS = Path("/dev/pts")

WHY: Mapping[str | None, str] = {
    Reason.SILENT: "the GPU machine has gone silent",
    Reason.REFUSED: "the GPU machine's processes are gone",
    Reason.STOPPING: "the GPU machine is being stopped",
    Reason.CALLED: "you were moved, as it was asked for",
    None: "the GPU machine is gone",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the editor's extension and the console show."""

    state: str
    """`gpu`: the door leads to the GPU. `provisional`: it was given up, and the record has not answered yet.
    `standby`: the standby writes by the record's word. `incomplete`: the GPU is dead, the copy here is not whole, and
    nobody is moved. `none`: the record names no writer."""
    message: str
    """One sentence for the user."""
    since: str
    """ISO 8601, UTC, by this machine's clock: when this state began."""
    epoch: int
    label: str | None = None
    """Of the GPU that is spoken of."""
    reason: str | None = None
    lease_s: float | None = None
    is_watched: bool = False
    """The GPU beats, and its death would be seen."""
    rtt_ms: float | None = None
    """Of the tether's handshake: the way to the GPU and back."""
    is_whole: bool = False
    """The copy here equals what the GPU had at its version."""
    hand_back_at: str | None = None
    """ISO 8601, UTC, by this machine's clock: when the user moves back to a GPU, if that is decided."""


def state_of(role: Role, *, is_stuck: bool = False) -> str:
    if role.sealed is not None:
        return "provisional"
    if role.is_writer:
        return "standby"
    if is_stuck:
        return "incomplete"
    return "gpu" if side_of(role) is Side.GPU else "none"


def message_of(state: str, role: Role, reason: str | None, hand_back_in_s: float | None = None) -> str:
    match state:
        case "provisional":
            return f"{_capital(WHY.get(reason, WHY[None]))}. You are on the standby: go on, your files are here."
        case "incomplete":
            return f"{_capital(WHY.get(reason, WHY[None]))}. The copy here is not complete: wait for the last snapshot."
        case "standby" if role.view.is_frozen:
            return "Your work moves back to a GPU machine now; processes that run here are ended."
        case "standby" if hand_back_in_s is not None:
            return (
                f"A GPU machine is ready: you move to it in {hand_back_in_s:.0f} s, and processes here are ended then."
            )
        case "standby":
            return "You are on the standby: your files are here, there is no GPU until a new one is ready."
        case "gpu":
            return "You are on the GPU machine."
        case _:
            return "No machine runs; what is changed here may not be kept."


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def write(home: Path, status: Status) -> None:
    """Whole or not at all. Not fsynced: it is of the moment."""
    for name, text in ((STATUS, json.dumps(asdict(status))), (MOTD, f"dumont: {status.message}\n")):
        new = home / (name + ".new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(home / name)


def read(home: Path) -> dict[str, Any]:
    """Empty when none was written."""
    try:
        return dict(json.loads((home / STATUS).read_bytes()))
    except (FileNotFoundError, ValueError):
        return {}


def last(home: Path) -> Status:
    """What was said last, by a watchdog before this one too; an empty one when nothing was."""
    nothing = Status(state="", message="", since="", epoch=0)
    try:
        return Status(**read(home)) if read(home) else nothing
    except TypeError:
        return nothing  # of another version of this program


def now_iso(in_s: float = 0.0) -> str:
    """The moment, or the one `in_s` seconds from now, as people read it; nothing is decided by it."""
    moment = datetime.now(UTC) + timedelta(seconds=in_s)  # noqa: TID251 - shown, and compared with nothing
    return moment.isoformat(timespec="milliseconds")


def tell_terminals(message: str, folder: Path = TERMINALS) -> int:
    """A line on every terminal; how many took it. One that is full or closed is passed over, never waited for."""
    line = f"\r\n\a*** dumont: {message} ***\r\n".encode()
    told = 0
    with contextlib.suppress(OSError):
        for name in sorted(entry.name for entry in os.scandir(folder) if entry.name.isdigit())[:TERMINALS_MAX]:
            with contextlib.suppress(OSError):
                terminal = os.open(folder / name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                try:
                    os.write(terminal, line)
                    told += 1
                finally:
                    os.close(terminal)
    return told


async def serve(home: Path, port: int) -> asyncio.Server:
    """On loopback alone. `port` 0 = any free one."""
    import asyncio  # the agent reads what is written here, and does without

    return await asyncio.start_server(_answerer(home), "127.0.0.1", port, limit=REQUEST_BYTES_MAX)


async def serve_socket(home: Path, socket: Path) -> asyncio.Server:
    """At a socket for whoever may log in here."""
    import asyncio

    server = await asyncio.start_unix_server(_answerer(home), socket, limit=REQUEST_BYTES_MAX)
    socket.chmod(0o666)
    return server


def _answerer(home: Path) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, home))
                await writer.drain()
        writer.close()

    return answer


def _answer(head: bytes, home: Path) -> bytes:
    method, path, *_ = [*head.split(b"\r\n")[0].split(b" "), b"", b""]
    allowed = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Methods: GET\r\nCache-Control: no-store\r\n"
    if method == b"OPTIONS":
        return b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Private-Network: true\r\n" + allowed + b"\r\n"
    found = read(home) if (method, path.partition(b"?")[0]) == (b"GET", b"/status") else None
    code, body = (b"200 OK", json.dumps(found).encode()) if found else (b"404 Not Found", b"{}")
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n" % len(body)
    return b"HTTP/1.1 " + code + b"\r\n" + kind + allowed + b"\r\n" + body
