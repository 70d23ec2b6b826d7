"""The heartbeat on the wire: what is proven, what is refused, what a sender says when."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.watch import RUN_BITS, Beat, State
from common.host import beats, pair
from common.host.beats import BEAT_BYTES_MAX, LENGTH, Bond, Forged, Sender, bond_of, next_run, pack, unpack

KEY = bytes(range(32))
LABEL = "dumont-d-i-1-aaaaaaaa"
BEAT = Beat(epoch=3, label=LABEL, seq=7)


@given(
    st.builds(
        Beat,
        epoch=st.integers(0, 2**64 - 1),
        label=st.text("abcdefghij0123456789-", min_size=1, max_size=63),
        seq=st.integers(0, 2**64 - 1),
        state=st.sampled_from(State),
        is_tether=st.booleans(),
    )
)
def test_what_was_packed_is_what_is_unpacked(beat: Beat) -> None:
    datagram = pack(beat, KEY)

    assert len(datagram) <= BEAT_BYTES_MAX
    assert unpack(datagram, KEY) == beat


@given(st.binary(max_size=2 * BEAT_BYTES_MAX))
def test_arbitrary_bytes_are_refused_by_one_error(datagram: bytes) -> None:
    with pytest.raises(Forged):
        unpack(datagram, KEY)


@given(st.binary(max_size=BEAT_BYTES_MAX))
def test_so_are_bytes_of_a_holder_of_the_key_that_are_no_beat(said: bytes) -> None:
    with pytest.raises(Forged):
        unpack(said + beats._code(said, KEY), KEY)


def test_every_flipped_bit_and_every_cut_is_seen() -> None:
    datagram = pack(BEAT, KEY)
    for bit in range(8 * len(datagram)):
        flipped = bytearray(datagram)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Forged):
            unpack(bytes(flipped), KEY)
    for length in range(len(datagram)):
        with pytest.raises(Forged):
            unpack(datagram[:length], KEY)


def test_another_key_and_no_key_prove_nothing() -> None:
    for key in (bytes(32), b"", KEY[:-1]):
        with pytest.raises(Forged):
            unpack(pack(BEAT, key or b"x"), KEY)
    with pytest.raises(Forged):
        unpack(pack(BEAT, b""), b"")


@pytest.mark.parametrize("label", ["", "x" * 64, "é" * 32])
def test_what_no_label_can_be_is_not_sent(label: str) -> None:
    with pytest.raises(ValueError, match="no label"):
        pack(Beat(epoch=1, label=label, seq=1), KEY)


def test_numbers_rise_over_restarts_of_the_sender(tmp_path: Path) -> None:
    first, second = next_run(tmp_path), next_run(tmp_path)

    assert second > first
    assert next(Sender._numbers(second)) > first << RUN_BITS
    (tmp_path / beats.RUNS_FILE).write_text("torn\x00")
    assert next_run(tmp_path) >= 1


def test_only_the_writer_of_a_pair_with_a_door_and_a_key_beats(tmp_path: Path) -> None:
    door = {"host": "127.0.0.1", "udp_port": 9, "ssh_port": 8, "user": "tunnel", "host_key": "k"}
    whole = {"label": LABEL, "rev": 1, "epoch": 3, "writer": LABEL, "key": KEY.hex(), "door": door}
    assert bond_of(tmp_path) is None
    for rev, missing in enumerate(({"writer": "other"}, {"key": ""}, {"door": None}), start=1):
        pair.keep(tmp_path, pair.Kept(**{**whole, **missing, "rev": rev}))
        assert bond_of(tmp_path) is None
    pair.keep(tmp_path, pair.Kept(**{**whole, "rev": 9}))
    assert bond_of(tmp_path) == Bond("127.0.0.1", 9, 3, LABEL, KEY)


def test_a_sender_beats_ties_a_tether_and_says_stopping_several_times_at_the_end(tmp_path: Path) -> None:
    async def story() -> tuple[list[Beat], list[Beat]]:
        heard: list[Beat] = []
        tied: list[Beat] = []

        open_ends: set[asyncio.StreamWriter] = set()

        async def tether(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_ends.add(writer)
            try:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                tied.append(unpack(await reader.readexactly(length), KEY))
                writer.write(b"\n")
                if len(tied) > 1:
                    await reader.read(1)
            finally:
                writer.close()  # the first one breaks: it is tied anew
                open_ends.discard(writer)

        server = await asyncio.start_server(tether, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.bind(("127.0.0.1", port))
            sender = Sender(Bond("127.0.0.1", port, 3, LABEL, KEY), run=1)
            running = asyncio.create_task(sender.run())
            while len(tied) < 2 or len(heard) < 5:
                heard.append(unpack(await asyncio.get_running_loop().sock_recv(line, 2000), KEY))
            sender.end(State.STOPPING)
            await running
            while True:
                try:
                    heard.append(unpack(line.recv(2000), KEY))
                except BlockingIOError:
                    break
        server.close()
        while open_ends:
            await asyncio.sleep(0.01)
        return heard, tied

    heard, tied = asyncio.run(asyncio.wait_for(story(), 20))

    seqs = [beat.seq for beat in heard]
    assert seqs == sorted(set(seqs))
    assert not set(seqs) & {beat.seq for beat in tied}
    assert all(beat.is_tether for beat in tied)
    assert not any(beat.is_tether for beat in heard)
    stopping = [beat for beat in heard if beat.state is State.STOPPING]
    assert len(stopping) == beats.LAST_TIMES
    assert heard[-1].state is State.STOPPING


def test_the_program_ends_with_a_sentence_when_there_is_nobody_to_beat_to(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="names no standby"):
        asyncio.run(beats.follow(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
