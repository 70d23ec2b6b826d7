"""The line between the GPU and its standby in the bench: two TUN devices and a relay of packets between them.

    python -m tests.bench.failover_link <namespace> <namespace>

Each line of stdin sets it anew: `<share lost> <seconds of delay>`; a share of 1 is a cut. This kernel has no netem, and
it would not be needed. stdout: one line when both devices are up.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import random
import struct
import sys
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x1, 0x1000, 0x40000000
DEVICE = "line0"
PACKET_BYTES_MAX = 1 << 16


def device_in(namespace: str) -> int:
    """The packets of a TUN device inside of a network namespace; this process leaves it again."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        packets = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(packets, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        return packets
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(there)
        os.close(home)


class Line:
    def __init__(self, one: int, other: int, chance: random.Random) -> None:
        self.ends, self.chance = {one: other, other: one}, chance
        self.lost, self.delay_s = 0.0, 0.0

    def relay(self, end: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            packet = os.read(end, PACKET_BYTES_MAX)
        except OSError:
            return
        if self.chance.random() < self.lost:
            return
        if self.delay_s:
            loop.call_later(self.delay_s, self._pass_on, end, packet)
        else:
            self._pass_on(end, packet)

    def _pass_on(self, end: int, packet: bytes) -> None:
        try:
            os.write(self.ends[end], packet)
        except OSError:
            return  # a device that is just going down, or a full queue: lost, as on any line


async def main(one: str, other: str) -> None:
    loop = asyncio.get_running_loop()
    line = Line(device_in(one), device_in(other), random.Random(1))
    for end in line.ends:
        loop.add_reader(end, line.relay, end)
    print("up", flush=True)
    words = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    while said := await words.readline():
        lost, delay_s = said.split()
        line.lost, line.delay_s = float(lost), float(delay_s)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
