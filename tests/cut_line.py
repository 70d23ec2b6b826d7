"""A line on loopback that can be cut: what goes through is held back, and nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

PIECE_BYTES = 1 << 16
HELD_S = 0.02


class CutLine:
    """Relays TCP and datagrams of one port each; `cut` holds everything from now on, connections stay as they are."""

    def __init__(self, *, ssh_port: int, beats_port: int) -> None:
        self.is_cut = False
        self.ssh_port = self.udp_port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(ssh_port, beats_port),), daemon=True)
        self._thread.start()
        assert self._is_up.wait(10)

    async def _run(self, ssh_port: int, beats_port: int) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        ssh = await asyncio.start_server(lambda r, w: self._serve(r, w, ssh_port), "127.0.0.1", 0)
        tether = await asyncio.start_server(lambda r, w: self._serve(r, w, beats_port), "127.0.0.1", 0)
        self.ssh_port, self.udp_port = (each.sockets[0].getsockname()[1] for each in (ssh, tether))
        here = ("127.0.0.1", self.udp_port)
        beats, _ = await self._loop.create_datagram_endpoint(lambda: Datagrams(self, beats_port), local_addr=here)
        async with ssh, tether:
            self._is_up.set()
            await self._is_over.wait()
            for writer in self._writers:
                writer.transport.abort()
        beats.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, other_writer}
        self._writers |= pair
        await asyncio.gather(self._pass_on(reader, other_writer), self._pass_on(other_reader, writer))
        self._writers -= pair

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                while self.is_cut:
                    await asyncio.sleep(HELD_S)
                writer.write(piece)
                await writer.drain()
        while self.is_cut:  # an end is news, too
            await asyncio.sleep(HELD_S)
        writer.close()

    def close(self) -> None:
        self.is_cut = False
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join(10)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, line: CutLine, port: int) -> None:
        self.line, self.port = line, port

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.line.is_cut:
            self.transport.sendto(data, ("127.0.0.1", self.port))
