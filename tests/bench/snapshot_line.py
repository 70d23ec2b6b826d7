"""A line that is not loopback: a proxy that adds a round trip's delay and holds each connection to a rate.

Run: python -m tests.bench.snapshot_line <port of the server>; it prints the port it listens at. What it stands for is
an assumption, not a measurement: 30 ms there and back, as much again for each new connection, 40 MB/s per connection
(what one connection to an object store far away gives). The kernel here has no netem.
"""

from __future__ import annotations

import asyncio
import os
import shutil
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
PIECE_BYTES = 64 << 10
IN_FLIGHT = 64
"""Pieces that are on the line: 4 MiB, more than rate times delay."""
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
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(ROUND_TRIP_S)  # the handshake
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(reader, back), _carry(there, writer), return_exceptions=True)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction: each piece arrives half a round trip after the last of its bytes was put on the line."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
    clock = asyncio.get_running_loop().time

    async def deliver() -> None:
        while (due := await pieces.get())[1]:
            await asyncio.sleep(due[0] - clock())
            writer.write(due[1])
            await writer.drain()
        writer.close()

    delivery = asyncio.create_task(deliver())
    free_at = 0.0
    try:
        while piece := await reader.read(PIECE_BYTES):
            free_at = max(free_at, clock()) + len(piece) / BYTES_S
            await pieces.put((free_at + ROUND_TRIP_S / 2, piece))
    finally:
        await pieces.put((0.0, b""))
        await delivery


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
