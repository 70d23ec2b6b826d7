"""A GPU and its standby on one machine: two directories, two roles, a real socket between real ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from common.domain.role import View
from common.host.epoch import Epoch
from common.host.livesync.control import ask
from common.host.livesync.errors import NotInSync
from common.host.livesync.frames import FRAME_BYTES_MAX
from common.host.livesync.receive import Receiver
from common.host.livesync.send import Sender
from common.host.livesync.stream import OnItsWay

GPU, STANDBY = "dumont-d-i-1-aaaaaaaa", "dumont-d-i-2-bbbbbbbb"
WAIT_S = 30.0


class Pair:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gpu, self.mirror = folder / "gpu", folder / "mirror"
        self.gpu_home, self.standby_home = folder / "gpu-home", folder / "standby-home"
        for each in (self.gpu, self.mirror):
            each.mkdir(exist_ok=True)
        self.gpu_epoch, self.standby_epoch = Epoch(self.gpu_home, GPU), Epoch(self.standby_home, STANDBY)
        self.socket = folder / "socket"
        self.acks: list[OnItsWay] = []
        self.starts = 0
        self.hear(View(rev=1, epoch=1, writer=GPU, standby=STANDBY, mirror=STANDBY))

    def hear(self, view: View) -> None:
        self.gpu_epoch.hear(view)
        self.standby_epoch.hear(view)

    def sender(self, **settings: Any) -> Sender:
        self.starts += 1
        return Sender(
            self.gpu,
            self.gpu_home,
            self.gpu_epoch,
            lambda: asyncio.open_unix_connection(self.socket, limit=FRAME_BYTES_MAX),
            stream=b"start-%d" % self.starts,
            clock=time.monotonic,
            **{"ack": self.acks.append, **settings},
        )

    @contextlib.asynccontextmanager
    async def receiving(self) -> AsyncIterator[Receiver]:
        receiver = Receiver(self.mirror, self.standby_home, self.standby_epoch)
        self.socket.unlink(missing_ok=True)
        connections: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            connections.add(task)
            with contextlib.suppress(asyncio.CancelledError):
                await receiver.serve(reader, writer)
            connections.discard(task)

        server = await asyncio.start_unix_server(serve, self.socket, limit=FRAME_BYTES_MAX)
        try:
            yield receiver
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            receiver.close()

    @contextlib.asynccontextmanager
    async def sending(self, **settings: Any) -> AsyncIterator[Sender]:
        sender = self.sender(**settings)
        task = asyncio.ensure_future(sender.run())
        try:
            yield sender
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @contextlib.asynccontextmanager
    async def syncing(self, **settings: Any) -> AsyncIterator[Sender]:
        async with self.receiving(), self.sending(**settings) as sender:
            yield sender

    def is_equal(self) -> bool:
        return tree(self.gpu) == tree(self.mirror)


def tree(root: Path, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Every name with its kind, mode, content and (of files) time; without the receiver's own."""
    found: dict[bytes, tuple[Any, ...]] = {}
    waiting = [os.fsencode(root)]
    while waiting:
        folder = waiting.pop()
        for entry in os.scandir(folder):
            if entry.name.startswith(b".dumont-part-"):
                continue
            status = entry.stat(follow_symlinks=False)
            path, mode = entry.path[len(os.fsencode(root)) + 1 :], stat.S_IMODE(status.st_mode)
            if entry.is_symlink():
                found[path] = ("link", os.fsencode(Path(os.fsdecode(entry.path)).readlink()))
            elif entry.is_dir():
                found[path] = ("dir", mode)
                waiting.append(entry.path)
            else:
                with open(entry.path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                found[path] = ("file", mode, status.st_mtime_ns if times else 0, status.st_size, content)
    return found


async def until(holds: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Looks again and again; fails when it does not hold in time."""
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, "it never came to hold"
        await asyncio.sleep(0.005)


def save(path: Path, data: bytes) -> None:
    """As editors do: beside it, then in its place."""
    new = path.with_name("." + path.name + ".new")
    new.write_bytes(data)
    new.replace(path)


class Programs:
    """The same two ends as the programs that the agent starts, each of which may be killed at any moment."""

    def __init__(self, pair: Pair, *, far: Path | None = None) -> None:
        self.pair, self._far = pair, far
        """`far`: where the receiver listens, when something lies between it and the sender."""
        self.acks = pair.folder / "acks"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.running):
            self.kill(name)

    def start(self, name: str) -> None:
        """`send` or `receive`."""
        pair = self.pair
        is_sender = name == "send"
        socket = pair.socket if is_sender else self._far or pair.socket
        words = ["--workspace", str(pair.gpu if is_sender else pair.mirror), "--unix", str(socket)]
        words += ["--home", str(pair.gpu_home if is_sender else pair.standby_home)]
        words += ["--label", GPU, "--acks", str(self.acks)] if is_sender else ["--label", STANDBY]
        program = [sys.executable, "-m", "common.host.main", f"livesync-{name}", *words]
        self.running[name] = subprocess.Popen(program, cwd=Path(__file__).parents[1])

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def wait(self, wait_s: float = WAIT_S, *, compares: bool = False) -> None:
        """The barrier, once the sender is up. Raises `NotInSync`."""
        end_s = time.monotonic() + wait_s
        while True:
            try:
                ask(self.pair.gpu_home, wait_s=max(1.0, end_s - time.monotonic()), compares=compares)
                return
            except NotInSync as error:
                if "no live sync answers" not in str(error) or time.monotonic() > end_s:
                    raise
            time.sleep(0.02)

    def acked(self) -> dict[bytes, tuple[int, int, float]]:
        """Of each path the last confirmed state: (bytes, time of the file, when it was confirmed)."""
        found: dict[bytes, tuple[int, int, float]] = {}
        lines = self.acks.read_text().splitlines(keepends=True) if self.acks.exists() else []
        for line in lines:
            if line.endswith("\n"):
                _, size, mtime_ns, at_s, path = line[:-1].split(" ")
                found[bytes.fromhex(path)] = (int(size), int(mtime_ns), float(at_s))
        return found
