"""The mirror's end of the live sync: takes the frames of the writer that the record names, and of nobody else.

Ordered frames are gathered while the batch before them is put in place. A batch: content is written to files that
nobody sees and made durable; then, holding the right to take (`Epoch.taking`), everything gets its name in order, the
names are made durable, and the content's version is recorded; only then is it acknowledged. A seal thus falls between
two batches. Large files come in pieces beside the order and are durable before their name is asked for.

One connection at a time: a newer one of the same writer ends the older, which may be a dead half of a cut line.
Whatever fails leaves the rest unacknowledged; the sender comes again and sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.domain.host import Sync
from common.domain.role import Role
from common.host.atomic import write_atomically
from common.host.epoch import Epoch, Fenced
from common.host.livesync import frames, wire
from common.host.livesync.arriving import Arriving, Transfer, to_its_end
from common.host.livesync.ending import until_one_ends
from common.host.livesync.errors import Lacks
from common.host.livesync.frames import (
    ORDERED,
    TEXT_BYTES_MAX,
    VERSION,
    Ack,
    BadFrame,
    Drop,
    File,
    Frame,
    Hello,
    Listing,
    Mark,
    PassBegin,
    PassDone,
    PassEnd,
    Piece,
    Placed,
    Refused,
    Want,
    Wants,
    Welcome,
    require,
)
from common.host.livesync.place import Place
from common.host.livesync.standing import write_standing
from common.snapshots.ignore import IGNORE_FILE, excludes
from common.snapshots.tree import join

HELLO_WITHIN_S = 10.0
WAITING_BYTES_MAX = 32 << 20
"""Of frames that are not in place yet; beyond it nothing is read."""
BATCH_FRAMES_MAX = 512
"""Put in place under one lock: what a seal may wait for."""
STREAM_FILE = "livesync-stream"


@dataclass
class Taken:
    """What a batch came to."""

    answers: list[Frame]
    count: int
    """Ordered frames of the connection so far."""


class Receiver:
    """`home` = the agent's folder; `epoch` = the role of this machine in it."""

    def __init__(self, workspace: Path, home: Path, epoch: Epoch) -> None:
        self._workspace, self._home, self._epoch = workspace, home, epoch
        self._place = Place(workspace, excludes(workspace).names)
        self._connection: Connection | None = None
        self._task: asyncio.Task[Any] | None = None
        self._turn = asyncio.Lock()
        self.standing = Sync()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends; whatever ends it is told to the sender if it still listens."""
        try:
            hello = await self._hello(reader, writer)
            if hello is None:
                return
            await self._supersede()
            async with self._turn:
                await self._serve(hello, reader, writer)
        except (BadFrame, Fenced, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            await _refuse(writer, error)
        finally:
            writer.close()

    async def _hello(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello | None:
        async with asyncio.timeout(HELLO_WITHIN_S):
            hello = await read_frame(reader)
        if not isinstance(hello, Hello) or hello.version != VERSION:
            raise BadFrame(f"a sender of version {VERSION} says hello first")
        role = self._epoch.read()
        if not role.may_take(hello.epoch, hello.label.decode(errors="replace")):
            writer.write(wire.pack(Refused(f"not the writer here: {role.view}, sealed {role.sealed}".encode())))
            await writer.drain()
            return None
        return hello

    async def _supersede(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _serve(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known = self._known_stream()
        role = self._epoch.read()
        is_going_on = known == _stream_of(hello) and role.version.epoch == hello.epoch
        welcome = Welcome(hello.stream if is_going_on else b"", role.version.epoch, role.version.seq)
        if not is_going_on:
            write_atomically(self._home / STREAM_FILE, _stream_of(hello))
        writer.write(wire.pack(welcome))
        self._place.renew()
        connection = Connection(self, hello, role, is_whole=role.is_whole and is_going_on)
        self._task = asyncio.ensure_future(connection.run(reader, writer))
        try:
            await self._task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current and current.cancelling():
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                raise
        finally:
            self._task = None
            connection.close()

    def _known_stream(self) -> bytes:
        try:
            return (self._home / STREAM_FILE).read_bytes()
        except FileNotFoundError:
            return b""

    def close(self) -> None:
        self._place.close()


class Connection:
    def __init__(self, owner: Receiver, hello: Hello, role: Role, *, is_whole: bool) -> None:
        self._owner, self._place, self._hello = owner, owner._place, hello
        self._label = hello.label.decode(errors="replace")
        self._fillings = role.fillings
        self._seq = role.version.seq if role.version.epoch == hello.epoch else 0
        self._is_whole = is_whole
        self._waiting: deque[tuple[Frame, Transfer | None]] = deque()
        self._waiting_bytes = 0
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._count = 0
        """Ordered frames that are in place."""
        self._wanted = 0
        self._complete: list[Transfer] = []
        """Large files that are all there, until they are placed."""
        self._pass: Any = None
        self._pass_number, self._pass_differing = 0, 0
        self._root: str | None = owner.standing.root

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises what ended it."""
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        arriving = Arriving(
            self._place,
            told=lambda took: writer.write(wire.pack(took)),
            failed=lambda error: None if failed.done() else failed.set_exception(error),
        )
        try:
            await until_one_ends(self._read(reader, arriving), self._take(writer), failed)
        finally:
            await arriving.close()

    def close(self) -> None:
        """Nothing of it runs any more."""
        for transfer in self._complete:
            os.close(transfer.fd)
        self._place.unsettle()
        self._place.empty()

    # --- reading

    async def _read(self, reader: asyncio.StreamReader, arriving: Arriving) -> None:
        while True:
            frame = await read_frame(reader)
            match frame:
                case Piece():
                    arriving.piece(frame)
                case Drop(number):
                    await arriving.drop(number)
                case _:
                    require(isinstance(frame, ORDERED), "a frame that only a receiver says")
                    transfer = arriving.complete(frame) if isinstance(frame, Placed) else None
                    self._complete += [transfer] if transfer else []
                    self._waiting.append((frame, transfer))
                    self._waiting_bytes += _weight(frame)
                    self._news.set()
                    while self._waiting_bytes > WAITING_BYTES_MAX:
                        self._room.clear()
                        await self._room.wait()

    # --- putting in place

    async def _take(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._news.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_FRAMES_MAX))]
            if not self._waiting:
                self._news.clear()
            taken = await to_its_end(self._put, batch)
            self._waiting_bytes -= sum(_weight(frame) for frame, _ in batch)
            self._room.set()
            for answer in (*taken.answers, Ack(taken.count)):
                writer.write(wire.pack(answer))
            await writer.drain()

    def _put(self, batch: list[tuple[Frame, Transfer | None]]) -> Taken:
        """In a thread. Raises `Fenced` before anything has got its name."""
        parts = [self._content(frame, transfer) for frame, transfer in batch]
        self._place.sync_parts([part for part in parts if part])
        lacking: list[tuple[int, Frame, list[bytes]]] = []
        answers: list[Frame] = []
        before = (self._seq, self._is_whole)
        changed = False
        with self._owner._epoch.taking(self._hello.epoch, self._label, fillings=self._fillings) as done:
            for (frame, _), part in zip(batch, parts, strict=True):
                self._count += 1
                if isinstance(frame, Mark | PassBegin | PassEnd):
                    answers += self._note(frame)
                    continue
                names = self._put_one(frame, part)
                changed = True
                if names:
                    lacking.append((self._count, frame, names))
                    self._wanted += 1
            if changed:
                self._place.settle()
            if changed or (self._seq, self._is_whole) != before:
                done(self._seq, self._is_whole)
        self._place.throw_away()
        if any(getattr(frame, "path", b"") == IGNORE_FILE.encode() for frame, _ in batch):
            self._place.is_left_out = excludes(self._owner._workspace).names
        self._tell()
        return Taken([self._ask(*each) for each in lacking] + answers, self._count)

    def _content(self, frame: Frame, transfer: Transfer | None) -> bytes:
        """The name of the part that holds it, empty for a frame without content of its own."""
        if isinstance(frame, File):
            return self._place.write_part(frame)
        if isinstance(frame, Placed) and transfer:
            self._place.dress(transfer.fd, frame.dress)
            self._complete.remove(transfer)
            os.close(transfer.fd)
            return transfer.part
        return b""

    def _put_one(self, frame: Any, part: bytes) -> list[bytes]:
        """Names that the sender is asked for, each a whole path."""
        if isinstance(frame, Listing) and frame.is_of_pass and self._pass:
            self._compare(frame)
        try:
            return [join(frame.path, name) for name in self._place.put(frame, part)]
        except Lacks as lacks:
            return [lacks.path]

    def _compare(self, listing: Listing) -> None:
        until = None if listing.is_last else listing.entries[-1].name
        with contextlib.suppress(Lacks):
            there = self._place.entries(listing.path, listing.after, until)
            self._pass.update(frames.essence(listing.path, there))

    def _note(self, frame: Mark | PassBegin | PassEnd) -> list[Frame]:
        match frame:
            case Mark(seq, is_whole, heard):
                if heard == self._wanted:
                    self._seq, self._is_whole = max(self._seq, seq), is_whole
            case PassBegin(number):
                from blake3 import blake3

                self._pass, self._pass_number, self._pass_differing = blake3(), number, self._wanted
            case PassEnd(number, root):
                found = self._pass.digest() if self._pass and number == self._pass_number else b""
                self._root = found.hex() if found and found == root else self._root
                return [PassDone(number, found, self._wanted - self._pass_differing)]
        return []

    def _ask(self, count: int, frame: Any, paths: list[bytes]) -> Wants:
        """One folder's names; a digest where only the content can tell."""
        sizes: dict[bytes, int] = {}
        if isinstance(frame, Listing):
            sizes = {join(frame.path, entry.name): entry.size for entry in frame.entries}
        folder = paths[0].rpartition(b"/")[0]
        names = tuple(Want(path.rpartition(b"/")[2], self._place.digest(path, sizes.get(path, 0))) for path in paths)
        return Wants(count, folder, names)

    def _tell(self) -> None:
        self._owner.standing = Sync(
            epoch=self._hello.epoch, seq=self._seq, root=self._root, is_whole=self._is_whole, peer=self._label
        )


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """Raises `BadFrame`, and IncompleteReadError at the end of the stream."""
    head = await reader.readexactly(wire.HEAD.size)
    return wire.parse(head, await reader.readexactly(wire.body_bytes(head)))


async def run_receiver(
    workspace: Path, home: Path, label: str, *, unix: Path | None = None, port: int | None = None
) -> None:
    """Serve at a unix socket or a port of loopback, for ever; `livesync.json` in `home` says how it stands."""
    receiver = Receiver(workspace, home, Epoch(home, label))
    if unix:
        unix.unlink(missing_ok=True)
        server: asyncio.Server = await asyncio.start_unix_server(receiver.serve, unix, limit=frames.FRAME_BYTES_MAX)
    else:
        server = await asyncio.start_server(receiver.serve, "127.0.0.1", port, limit=frames.FRAME_BYTES_MAX)
    async with server:
        await write_standing(home, lambda: receiver.standing)


def _stream_of(hello: Hello) -> bytes:
    return b"%d %s %s" % (hello.epoch, hello.label, hello.stream)


def _weight(frame: Frame) -> int:
    data = getattr(frame, "data", b"")
    return 256 + len(data)


async def _refuse(writer: asyncio.StreamWriter, error: Exception) -> None:
    """Best effort: who was cut off does not listen."""
    reason = str(error) or type(error).__name__
    with contextlib.suppress(OSError, TimeoutError):
        writer.write(wire.pack(Refused(reason.encode(errors="replace")[:TEXT_BYTES_MAX])))
        async with asyncio.timeout(1.0):
            await writer.drain()
