"""The GPU's heartbeat: one signed datagram each 50 ms to its standby, and a tether that breaks when this machine dies.

    dumont-host beats <home>

follows the folder's `pair.json` (`host.pair`): its door and its key. SIGTERM is the notice (`stopping`), SIGUSR1 the
end by the record's word (`leaving`). Datagrams and tether go to the same port of the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common.domain.watch import BEAT_EVERY_S, RUN_BITS, Beat, State
from common.host import pair

HEAD = struct.Struct("!4sBBQQB")
"""Magic, state, kind, epoch, seq, bytes of the label; then the label, then the code over all before it."""
LENGTH = struct.Struct("!H")
"""Before the one beat that a tether begins with; the standby answers it with one byte, and neither says more."""
MAGIC = b"DMB1"
STATES = (State.UP, State.STOPPING, State.LEAVING)
LABEL_BYTES_MAX = 63
CODE_BYTES = hashlib.sha256().digest_size
BEAT_BYTES_MAX = HEAD.size + LABEL_BYTES_MAX + CODE_BYTES
LAST_TIMES = 5
"""A last word is said so often, for any one of them may be lost."""
RUNS_FILE = "beats.runs"
TETHER_AGAIN_S, TETHER_AGAIN_MAX_S = 0.1, 5.0
CONNECT_S = 5.0
FOLLOW_EVERY_S = 0.5


class Forged(Exception):
    """No beat, or not one of a holder of this key."""


def pack(beat: Beat, key: bytes) -> bytes:
    """Raises ValueError for a label that no label can be."""
    label = beat.label.encode()
    if not 0 < len(label) <= LABEL_BYTES_MAX:
        raise ValueError(f"{beat.label!r} is no label")
    head = HEAD.pack(MAGIC, STATES.index(beat.state), beat.is_tether, beat.epoch, beat.seq, len(label))
    return head + label + _code(head + label, key)


def unpack(datagram: bytes, key: bytes) -> Beat:
    """Raises `Forged`; nothing of the bytes is looked at before the code over them was compared."""
    said, code = datagram[:-CODE_BYTES], datagram[-CODE_BYTES:]
    if not key or len(datagram) > BEAT_BYTES_MAX or not hmac.compare_digest(code, _code(said, key)):
        raise Forged("the code is wrong")
    try:
        magic, state, kind, epoch, seq, label_bytes = HEAD.unpack_from(said)
        label = said[HEAD.size :].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise Forged(str(error)) from None
    if magic != MAGIC or state >= len(STATES) or kind > 1 or len(label.encode()) != label_bytes:
        raise Forged("the form is wrong")
    return Beat(epoch=epoch, label=label, seq=seq, state=STATES[state], is_tether=bool(kind))


def _code(said: bytes, key: bytes) -> bytes:
    return hmac.digest(key, said, "sha256")


@dataclass(frozen=True)
class Bond:
    """To whom this machine beats, as whom, with what key."""

    host: str
    port: int
    epoch: int
    label: str
    key: bytes


def next_run(home: Path) -> int:
    """The number of this run of the sender: numbers of beats rise over its restarts, and over the machine's."""
    file = home / RUNS_FILE
    try:
        run = int(file.read_text()) + 1
    except (FileNotFoundError, ValueError):
        run = 1
    new = file.with_name(RUNS_FILE + ".new")
    new.write_text(str(run))
    new.replace(file)
    return run


class Sender:
    """Beats as long as `run` runs; `bond` may be exchanged while it does."""

    def __init__(self, bond: Bond, run: int) -> None:
        self.bond = bond
        self._seqs = self._numbers(run)
        self._state = State.UP
        self._is_over = asyncio.Event()

    def end(self, last: State) -> None:
        """Say why, and end."""
        self._state = last
        self._is_over.set()

    async def run(self) -> None:
        tether = asyncio.create_task(self._tether())
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                while not self._is_over.is_set():
                    self._beat(line)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(BEAT_EVERY_S):
                            await self._is_over.wait()
                for _ in range(LAST_TIMES):
                    self._beat(line)
                    await asyncio.sleep(BEAT_EVERY_S / LAST_TIMES)
        finally:
            tether.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tether

    def _beat(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError):  # no route for a moment, a full buffer: the next one follows in 50 ms
            line.sendto(self._said(), (self.bond.host, self.bond.port))

    def _said(self, *, is_tether: bool = False) -> bytes:
        bond = self.bond
        beat = Beat(epoch=bond.epoch, label=bond.label, seq=next(self._seqs), state=self._state)
        return pack(replace(beat, is_tether=is_tether), bond.key)

    async def _tether(self) -> None:
        """Tied anew whenever it breaks, at most each 5 s."""
        again_s = TETHER_AGAIN_S
        while True:
            if await self._was_tied():
                again_s = TETHER_AGAIN_S
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, TETHER_AGAIN_MAX_S)

    async def _was_tied(self) -> bool:
        """Ties it and holds it until it breaks; False: the standby did not take it."""
        bond, said = self.bond, self._said(is_tether=True)
        was_taken = False
        try:
            async with asyncio.timeout(CONNECT_S):  # wait_for of Python 3.11 may lose a cancellation
                reader, writer = await asyncio.open_connection(bond.host, bond.port)
        except (OSError, TimeoutError):
            return False
        with contextlib.closing(writer), contextlib.suppress(OSError):  # a reset is as good as a close
            _look_whether_it_is_there(writer.get_extra_info("socket"))
            writer.write(LENGTH.pack(len(said)) + said)
            while await reader.read(1):
                was_taken = True
        return was_taken

    @staticmethod
    def _numbers(run: int) -> Iterator[int]:
        seq = run << RUN_BITS
        while True:
            yield seq
            seq += 1


def _look_whether_it_is_there(connection: socket.socket) -> None:
    """A standby that came back after a cut knows nothing of a tether from before."""
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def follow(home: Path) -> None:
    """Beat for the pair that stands in `home` until SIGTERM; a new epoch or door is followed within half a second."""
    bond = bond_of(home)
    if bond is None:
        raise SystemExit(f"{home} names no standby that this machine beats to")
    sender = Sender(bond, next_run(home))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, sender.end, State.STOPPING)
    loop.add_signal_handler(pair.LEAVE, sender.end, State.LEAVING)
    running = asyncio.create_task(sender.run())
    while not running.done():
        await asyncio.wait([running], timeout=FOLLOW_EVERY_S)
        sender.bond = bond_of(home) or sender.bond
    await running


def bond_of(home: Path) -> Bond | None:
    """None: this machine is not the writer of a pair."""
    kept = pair.read(home)
    if kept is None or not kept.door or kept.writer != kept.label or not kept.key:
        return None
    return Bond(kept.door["host"], int(kept.door["udp_port"]), kept.epoch, kept.label, bytes.fromhex(kept.key))
