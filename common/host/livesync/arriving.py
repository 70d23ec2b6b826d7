"""Large files as they arrive at the mirror: in pieces, beside the order, each file written by a task of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.host.livesync.frames import BadFrame, Piece, Placed, Took, require
from common.host.livesync.place import Place
from common.snapshots.limits import MAX_FILE_BYTES
from common.snapshots.tree import write_at

TRANSFERS_MAX = 16
UNSYNCED_BYTES_MAX = 16 << 20
"""Of one file: made durable in steps, so that no small file's turn waits for all of it."""


@dataclass
class Transfer:
    part: bytes
    fd: int
    waiting: asyncio.Queue[Piece] = field(default_factory=asyncio.Queue)
    written_bytes: int = 0
    unsynced_bytes: int = 0
    is_durable: bool = False
    task: asyncio.Task[None] | None = None

    def write(self, piece: Piece) -> None:
        """In a thread."""
        require(piece.offset + len(piece.data) <= MAX_FILE_BYTES, "a file beyond all sizes")
        write_at(self.fd, piece.data, piece.offset)
        self.written_bytes = max(self.written_bytes, piece.offset + len(piece.data))
        self.unsynced_bytes += len(piece.data)
        if piece.is_last or self.unsynced_bytes >= UNSYNCED_BYTES_MAX:
            os.fdatasync(self.fd)
            self.unsynced_bytes = 0


class Arriving:
    """`told(took)` answers each piece; `failed(error)` is called when one cannot be written."""

    def __init__(self, place: Place, told: Callable[[Took], None], failed: Callable[[Exception], None]) -> None:
        self._place, self._told, self._failed = place, told, failed
        self._transfers: dict[int, Transfer] = {}

    def piece(self, piece: Piece) -> None:
        """Raises `BadFrame` for one that no sender of ours sends."""
        transfer = self._transfers.get(piece.transfer)
        if transfer is None:
            require(len(self._transfers) < TRANSFERS_MAX, "too many files at once")
            transfer = Transfer(*self._place.new_part())
            transfer.task = asyncio.ensure_future(self._write(piece.transfer, transfer))
            self._transfers[piece.transfer] = transfer
        require(not transfer.is_durable, "a piece after the last one")
        transfer.waiting.put_nowait(piece)

    def complete(self, placed: Placed) -> Transfer:
        """Handed over, to be placed. Raises `BadFrame` when it is not all there, durable."""
        transfer = self._transfers.get(placed.transfer)
        if transfer is None or not transfer.is_durable or transfer.written_bytes != placed.size:
            raise BadFrame("a file is to be placed whose pieces are not complete")
        return self._transfers.pop(placed.transfer)

    async def drop(self, number: int) -> None:
        transfer = self._transfers.pop(number, None)
        if transfer and transfer.task:
            await _ended(transfer.task)
            os.close(transfer.fd)
            self._place.discard(transfer.part)

    async def close(self) -> None:
        """Nothing is written any more; the parts are left to whoever empties their directory."""
        for transfer in self._transfers.values():
            if transfer.task:
                await _ended(transfer.task)
            os.close(transfer.fd)
        self._transfers.clear()

    async def _write(self, number: int, transfer: Transfer) -> None:
        while not transfer.is_durable:
            piece = await transfer.waiting.get()
            try:
                await to_its_end(transfer.write, piece)
            except (OSError, BadFrame) as error:
                self._failed(error)
                return
            transfer.is_durable = piece.is_last
            self._told(Took(number, transfer.written_bytes, transfer.is_durable))


async def to_its_end(work: Callable[..., Any], *args: Any) -> Any:
    """In a thread, which no cancelling can stop: who is cancelled waits for it all the same."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
