"""One connection of the sender: what lies in it, in which order, and what the receiver has confirmed of it.

Ordered frames describe a path as it is at the moment at which they are put into the stream, and the receiver carries
them out in that order; so nothing is awaited between looking at a path and putting its frame in. Large files go in
pieces beside the order, the one with the least left first, a window of them at a time: a small file never waits for
more than the window. Only when all of a large file is durable over there is it given its name, in order.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from common.host.livesync import frames, wire
from common.host.livesync.book import Change
from common.host.livesync.content import EDGE_BYTES, Sent, digest
from common.host.livesync.frames import Ack, Drop, Entry, Frame, Mark, Move, Piece, Placed, Took, Wants
from common.host.livesync.look import dress_of

WINDOW_BYTES = 4 << 20
"""Of pieces that are not confirmed: more than 1 Gbit/s times 30 ms, and what a small file may have before it."""
ORDERED_BYTES_MAX = 8 << 20
ORDERED_FRAMES_MAX = 4096
"""On their way; more are not put in before some are confirmed."""
TRANSFERS_MAX = 8


@dataclass(slots=True)
class OnItsWay:
    """An ordered frame that is not confirmed."""

    count: int
    seq: int
    """Of the change that it brings; 0: of none."""
    path: bytes
    since_s: float
    weight: int
    """Bytes on the wire."""
    size: int = 0
    mtime_ns: int = 0
    is_tree: bool = False
    source: bytes = b""
    """Of a move."""
    mark: Mark | None = None
    is_void: bool = False
    """It confirms nothing: the receiver lacked what it supposes, or (a mark) wanted something before it."""


@dataclass(eq=False)
class Transfer:
    number: int
    change: Change
    """Its path is the file's present name."""
    fd: int
    status: os.stat_result
    """When reading began."""
    offset: int = 0
    took: int = 0
    is_read: bool = False
    is_torn: bool = False
    """It was rewritten while it was read."""
    hasher: Any = field(default_factory=blake3)
    edge: bytes = b""

    @property
    def left(self) -> int:
        return self.status.st_size - self.offset


class Stream:
    """`confirmed(frame)` is called for every ordered frame in turn."""

    def __init__(self, writer: asyncio.StreamWriter, confirmed: Callable[[OnItsWay], None]) -> None:
        self._writer, self._confirmed = writer, confirmed
        self._count = 0
        self.on_its_way: deque[OnItsWay] = deque()
        self.last_of: dict[bytes, int] = {}
        """The newest frame on its way of each path, of what it was when the frame was put in."""
        self.placed: dict[bytes, int] = {}
        """The same of large files, which were read before that."""
        self._bytes = 0
        self.transfers: dict[int, Transfer] = {}
        self._next_transfer = 1
        self._in_window = 0
        self.wants_heard = 0
        self.mark = Mark(0, False, 0)
        """The last one put in."""

    # --- ordered frames

    def put(self, frame: Frame, seq: int, since_s: float, *, entry: Entry | None = None, is_tree: bool = False) -> None:
        self._count += 1
        data = wire.pack(frame)
        size, mtime_ns = (entry.size, entry.dress.mtime_ns) if entry else (0, 0)
        path = getattr(frame, "path", b"")
        sent = OnItsWay(self._count, seq, path, since_s, len(data), size, mtime_ns, is_tree)
        if isinstance(frame, Move):
            sent.source = frame.source
        if isinstance(frame, Mark):
            sent.mark = self.mark = frame
        else:
            (self.placed if isinstance(frame, Placed) else self.last_of)[path] = self._count
        self.on_its_way.append(sent)
        self._bytes += len(data)
        self._writer.write(data)

    @property
    def has_room(self) -> bool:
        return self._bytes < ORDERED_BYTES_MAX and len(self.on_its_way) < ORDERED_FRAMES_MAX

    @property
    def bytes_on_their_way(self) -> int:
        return self._bytes + sum(transfer.status.st_size - transfer.took for transfer in self.transfers.values())

    def acked(self, ack: Ack) -> None:
        while self.on_its_way and self.on_its_way[0].count <= ack.frames:
            sent = self.on_its_way.popleft()
            self._bytes -= sent.weight
            for last in (self.last_of, self.placed):
                if last.get(sent.path) == sent.count:
                    del last[sent.path]
            self._confirmed(sent)

    def wanted(self, wants: Wants) -> OnItsWay | None:
        """The frame that showed it."""
        self.wants_heard += 1
        found = None
        for sent in self.on_its_way:
            if sent.count == wants.at:
                found, sent.is_void = sent, True
            elif sent.count > wants.at and sent.mark:
                sent.is_void = True
        return found

    # --- large files

    @property
    def may_transfer(self) -> bool:
        return len(self.transfers) < TRANSFERS_MAX

    def begin(self, change: Change, fd: int) -> None:
        """From here on the stream holds the change and the descriptor."""
        number, self._next_transfer = self._next_transfer, self._next_transfer + 1
        self.transfers[number] = Transfer(number, change, fd, os.fstat(fd))

    async def send_piece(self) -> bool:
        """Of the transfer that has the least left; False: there is nothing to send, or no room in the window."""
        waiting = [each for each in self.transfers.values() if not each.is_read]
        if not waiting or self._in_window >= WINDOW_BYTES:
            return False
        transfer = min(waiting, key=lambda each: each.left)
        try:
            piece = await asyncio.to_thread(_read, transfer)
        except OSError:  # the disk does not give it: looked at again, and it shows as not confirmed
            self.drop(transfer)
            return True
        if transfer.number not in self.transfers:
            return True
        self._in_window += len(piece.data)
        self._writer.write(wire.pack(piece))
        return True

    def took(self, took: Took) -> Transfer | None:
        """The transfer, if it is complete and durable over there."""
        transfer = self.transfers.get(took.transfer)
        if transfer is None:
            return None
        self._in_window -= took.size - transfer.took
        transfer.took = took.size
        return transfer if took.is_durable else None

    def place(self, transfer: Transfer, *, seq: int) -> Sent:
        """Under its name from here on; what the receiver has of it then."""
        self._end(transfer)
        path = transfer.change.path
        dress = dress_of(transfer.status)
        entry = Entry(path.rpartition(b"/")[2], b"f", dress, transfer.offset, b"")
        placed = Placed(transfer.number, path, dress, transfer.offset)
        self.put(placed, seq, transfer.change.since_s, entry=entry)
        return Sent(transfer.status.st_ino, transfer.offset, transfer.hasher, transfer.edge)

    def drop(self, transfer: Transfer) -> None:
        self._end(transfer)
        self._in_window -= transfer.offset - transfer.took
        self._writer.write(wire.pack(Drop(transfer.number)))

    def _end(self, transfer: Transfer) -> None:
        del self.transfers[transfer.number]
        os.close(transfer.fd)

    def close(self) -> None:
        for transfer in list(self.transfers.values()):
            self._end(transfer)
        self._writer.close()

    async def drain(self) -> None:
        await self._writer.drain()


def _read(transfer: Transfer) -> Piece:
    """In a thread: the next piece, and at the end proof that all pieces are of one moment.

    A file that grew is read on. One that was written to while it was read is compared with what was sent.
    """
    data = os.pread(transfer.fd, frames.PIECE_BYTES_MAX, transfer.offset)
    at, now = transfer.offset, os.fstat(transfer.fd)
    transfer.hasher.update(data)
    transfer.edge = (transfer.edge + data)[-EDGE_BYTES:]
    transfer.offset += len(data)
    if data and transfer.offset < now.st_size:
        return Piece(transfer.number, at, False, data)
    began, transfer.status = transfer.status, now
    is_untouched = began.st_mtime_ns == now.st_mtime_ns and transfer.offset == now.st_size
    transfer.is_torn = not (is_untouched or digest(transfer.fd, transfer.offset) == transfer.hasher.digest())
    transfer.is_read = True
    return Piece(transfer.number, at, True, data)
