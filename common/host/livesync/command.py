"""The two ends as programs, which the agent starts: `dumont-host livesync-send` on the writer, `livesync-receive` on
the mirror.

Each reads its role from `role.json` in the agent's folder and heeds it from then on; each tells how it stands in
`livesync.json` there, once a second when that has changed. The sender connects to the end of the tunnel on its own
machine (a unix socket, or a port of loopback) and answers at `livesync.sock` (`control`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from common.host.epoch import Epoch
from common.host.livesync import control
from common.host.livesync.frames import FRAME_BYTES_MAX
from common.host.livesync.receive import run_receiver
from common.host.livesync.send import Connect, Sender
from common.host.livesync.standing import write_standing
from common.host.livesync.stream import OnItsWay

VERBS = ("livesync-send", "livesync-receive")


def main(words: Sequence[str]) -> None:
    """Runs until it is killed."""
    args = _parser().parse_args(words)
    place = {"unix": args.unix, "port": args.port}
    with contextlib.suppress(KeyboardInterrupt):
        if args.verb == "livesync-receive":
            asyncio.run(run_receiver(args.workspace, args.home, args.label, **place))
        else:
            asyncio.run(run_sender(args.workspace, args.home, args.label, host=args.host, acks=args.acks, **place))


async def run_sender(
    workspace: Path,
    home: Path,
    label: str,
    *,
    unix: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    acks: Path | None = None,
) -> None:
    """For ever. `acks`: each confirmed change is appended there (see `_written_to`)."""
    clock = asyncio.get_running_loop().time
    with contextlib.ExitStack() as open_files:
        sender = Sender(
            workspace,
            home,
            Epoch(home, label),
            _connect(unix, host, port),
            stream=secrets.token_hex(16).encode(),
            clock=clock,
            ack=_written_to(open_files.enter_context(acks.open("a", buffering=1)), clock)
            if acks
            else lambda _sent: None,
        )
        async with await control.serve(home, sender), asyncio.TaskGroup() as tasks:
            tasks.create_task(write_standing(home, lambda: sender.standing))
            tasks.create_task(sender.run())


def _connect(unix: Path | None, host: str, port: int | None) -> Connect:
    if unix:
        return lambda: asyncio.open_unix_connection(unix, limit=FRAME_BYTES_MAX)
    return lambda: asyncio.open_connection(host, port, limit=FRAME_BYTES_MAX)


def _written_to(log: TextIO, clock: Callable[[], float]) -> Callable[[OnItsWay], None]:
    """A line each: the change's number, bytes, the file's time (ns), when confirmed (s, monotonic), path (hex)."""

    def write(sent: OnItsWay) -> None:
        log.write(f"{sent.seq} {sent.size} {sent.mtime_ns} {clock():.6f} {sent.path.hex()}\n")

    return write


def _nowhere(_sent: OnItsWay) -> None:
    """Nobody wants to know."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dumont-host", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        each = verbs.add_parser(verb)
        each.add_argument("--workspace", type=Path, required=True)
        each.add_argument("--home", type=Path, required=True, help="the agent's folder")
        each.add_argument("--label", required=True, help="this machine's")
        at = each.add_mutually_exclusive_group(required=True)
        at.add_argument("--unix", type=Path)
        at.add_argument("--port", type=int, help="of loopback")
    verbs.choices["livesync-send"].add_argument("--host", default="127.0.0.1", help="an address of loopback")
    verbs.choices["livesync-send"].add_argument("--acks", type=Path, help="a log of what was confirmed")
    return parser
