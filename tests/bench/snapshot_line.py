"""A line that is not loopback: a proxy that adds a round trip's delay and holds each connection to a rate.

Run: python -m tests.bench.snapshot_line <port of the server>; it prints the port it listens at. What it stands for is
an assumption, not a measurement: 30 ms there and back, as much again for each new connection, 40 MB/s per connection
(what one connection to an object store far away gives). The kernel here has no netem.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from infra.demo.s3_server import S3Server
from tests.bench.snapshot_peers import Cost, Ours, Peer, S3cmd, s5cmd

ROUND_TRIP_S = 0.030
BYTES_S = 40e6
PIECE_BYTES = 256 << 10
AHEAD_S = 0.010
"""So long before its turn a piece is taken: a timer that is late leaves no gap on the line."""
BACKLOG = 256
SETS = {"small": (300, 20_000), "large": (8, 32 << 20)}
"""(files, bytes of each)"""


def measure(server: S3Server, home: Path, rounds: int) -> dict[str, dict[str, float]]:
    """s3cmd's seconds / ours, over that line: for small and large files, up and down. The claim in question is 31 x."""
    ratios: dict[str, dict[str, float]] = {}
    with line(server) as far:
        for name, (count, size) in SETS.items():
            root = home / f"far-{name}"
            root.mkdir()
            for number in range(count):
                (root / f"{number:03}").write_bytes(os.urandom(size))
            costs: dict[str, list[tuple[Cost, Cost]]] = {}
            for number in range(rounds):
                for kind in (Ours, PlainParallel, S3cmd):
                    peer = kind(kind.__name__, far, home, f"far-{name}-{kind.__name__}-{number}".lower())
                    costs.setdefault(peer.name, []).append(_there_and_back(peer, root, home / "far-restored"))
            seconds = {
                peer: [statistics.median(each[way].wall_s for each in found) for way in (0, 1)]
                for peer, found in costs.items()
            }
            for peer_name, (up, down) in seconds.items():
                print(f"far {name:6} {peer_name:14} backup {up:6.2f} s  restore {down:6.2f} s  n = {rounds}")
            ratios[name] = {
                way: round(seconds["S3cmd"][row] / seconds["Ours"][row], 1)
                for row, way in enumerate(("backup", "restore"))
            }
            shutil.rmtree(root)
    return ratios


class PlainParallel(Peer):
    """s5cmd by itself: what the claim of 31 x is about."""

    def backup(self, root: Path) -> Cost:
        return self.run(f"{s5cmd(self)} cp {root}/ s3://{self.server.bucket}/{self.place}/")

    def restore(self, to: Path) -> Cost:
        return self.run(f"{s5cmd(self)} cp --part-size 8 's3://{self.server.bucket}/{self.place}/*' {to}/")


def _there_and_back(peer: Peer, root: Path, target: Path) -> tuple[Cost, Cost]:
    costs = (peer.backup(root), peer.restore(target))
    shutil.rmtree(target)
    peer.forget()
    return costs


@contextmanager
def line(server: S3Server) -> Iterator[S3Server]:
    """The same server, far away."""
    words = [sys.executable, "-m", "tests.bench.snapshot_line", server.endpoint.rpartition(":")[2]]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        port = int(proxy.stdout.readline())
        try:
            yield replace(server, endpoint=f"http://127.0.0.1:{port}")
        finally:
            proxy.terminate()


async def _serve(port: int) -> None:
    loop, open_now = asyncio.get_running_loop(), set()
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        listening.setblocking(False)
        print(listening.getsockname()[1], flush=True)
        while True:
            near, _ = await loop.sock_accept(listening)
            connection = asyncio.create_task(_connect(near, port))
            open_now.add(connection)
            connection.add_done_callback(open_now.discard)


async def _connect(near: socket.socket, port: int) -> None:
    with near, socket.socket() as there:
        for end in (near, there):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.sleep(ROUND_TRIP_S)  # the handshake
        await asyncio.get_running_loop().sock_connect(there, ("127.0.0.1", port))
        await asyncio.gather(_carry(near, there), _carry(there, near), return_exceptions=True)


async def _carry(source: socket.socket, sink: socket.socket) -> None:
    """One direction: each piece arrives half a round trip after the last of its bytes was put on the line.

    It is taken from the sender when its turn is near, so what is on the line is no more than rate times delay, and
    comes in few large pieces: the line's own work would be measured otherwise, on the cores that it shares.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    delivery = asyncio.create_task(_deliver(pieces, sink))
    free_at = 0.0
    try:
        while piece := await loop.sock_recv(source, PIECE_BYTES):
            free_at = max(free_at, loop.time()) + len(piece) / BYTES_S
            pieces.put_nowait((free_at + ROUND_TRIP_S / 2, piece))
            await asyncio.sleep(free_at - AHEAD_S - loop.time())
    finally:
        pieces.put_nowait((0.0, b""))
        await delivery


async def _deliver(pieces: asyncio.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while (due := await pieces.get())[1]:
        await asyncio.sleep(due[0] - loop.time())
        await loop.sock_sendall(sink, due[1])
    sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
