"""The receiver takes frames of the one writer that the record names, never after its seal, never outside its tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.domain.role import View
from common.domain.version import Version
from common.host.livesync import frames, wire
from common.host.livesync.frames import (
    FRAME_BYTES_MAX,
    Ack,
    Delete,
    Dress,
    Entry,
    File,
    Frame,
    Hello,
    Link,
    Listing,
    Mark,
    Meta,
    Move,
    Piece,
    Placed,
    Refused,
    Tail,
    Took,
    Wants,
    Welcome,
)
from common.host.livesync.receive import read_frame
from tests.livesync_pair import GPU, STANDBY, Pair, save, tree, until

DRESS = Dress(0o644, 10**18, os.getuid(), os.getgid())
ENTRY = Entry(b"f", b"f", DRESS, 3, b"")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


class Line:
    """A sender by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, *said: Frame) -> None:
        self._writer.write(b"".join(map(wire.pack, said)))

    def say_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def hear(self) -> Frame:
        async with asyncio.timeout(10):
            return await read_frame(self._reader)

    async def hear_until_acked(self, count: int) -> list[Frame]:
        heard: list[Frame] = []
        while not (isinstance(last := await self.hear(), Ack) and last.frames == count):
            heard.append(last)
        return heard


@contextlib.asynccontextmanager
async def line(pair: Pair, *, epoch: int = 1, label: str = GPU, stream: bytes = b"by hand") -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_unix_connection(pair.socket, limit=FRAME_BYTES_MAX)
    try:
        made = Line(reader, writer)
        made.say(Hello(frames.VERSION, epoch, label.encode(), stream))
        yield made
    finally:
        writer.close()


def test_of_a_hundred_stale_epochs_and_strangers_none_is_heard(pair: Pair) -> None:
    pair.standby_epoch.hear(View(rev=2, epoch=60, writer=GPU, standby=STANDBY, mirror=STANDBY))
    strangers = [*[(epoch, GPU) for epoch in range(110) if epoch != 60][:99], (60, "dumont-d-i-9-cccccccc")]

    async def run() -> None:
        async with pair.receiving():
            for epoch, label in strangers:
                async with line(pair, epoch=epoch, label=label) as stale:
                    stale.say(File(b"f", DRESS, b"bad"))
                    assert isinstance(await stale.hear(), Refused)

    asyncio.run(run())

    assert len(strangers) == 100
    assert tree(pair.mirror) == {}


def test_frames_of_an_epoch_that_ended_under_way_are_refused_a_hundred_times_of_a_hundred(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving():
            for turn in range(100):
                epoch = pair.standby_epoch.read().view.epoch
                async with line(pair, epoch=epoch) as writer:
                    assert isinstance(await writer.hear(), Welcome)
                    writer.say(File(b"f", DRESS, b"%03d" % turn))
                    await writer.hear_until_acked(1)
                    pair.hear(View(rev=turn + 2, epoch=epoch + 1, writer=GPU, standby=STANDBY, mirror=STANDBY))
                    writer.say(File(b"f", DRESS, b"bad"))
                    assert isinstance(await writer.hear(), Refused)
                assert (pair.mirror / "f").read_bytes() == b"%03d" % turn

    asyncio.run(run())


def test_after_the_seal_nothing_is_put_in_place_and_the_claim_says_what_is_there(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving(), pair.sending() as sender:
            (pair.gpu / "a").write_bytes(b"before")
            seq = await sender.wait(30)
            claim = pair.standby_epoch.seal()
            assert (claim.epoch, claim.version.seq) == (1, seq)
            (pair.gpu / "a").write_bytes(b"after")
            (pair.gpu / "b").write_bytes(b"after")
            await until(lambda: "not the writer here" in sender.trouble)

    asyncio.run(run())

    assert (pair.mirror / "a").read_bytes() == b"before"
    assert not (pair.mirror / "b").exists()


def test_a_stream_that_began_before_a_snapshot_was_put_in_place_ends_and_the_next_one_compares_all(pair: Pair) -> None:
    async def story() -> None:
        async with pair.syncing() as sender:
            save(pair.gpu / "sent.txt", b"not in the snapshot")
            await until(lambda: sender.standing.is_whole and pair.is_equal())
            pair.standby_epoch.fill(is_on=True)
            (pair.mirror / "sent.txt").unlink()
            pair.standby_epoch.restored(Version(epoch=1, seq=0))  # nobody sent anything meanwhile

            save(pair.gpu / "next.txt", b"after it")
            await until(lambda: (pair.mirror / "next.txt").exists())
            assert pair.is_equal() or not pair.standby_epoch.read().is_whole
            await until(pair.is_equal)

    asyncio.run(story())


def test_a_mirror_in_its_first_comparison_is_not_whole_until_it_is_over(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving(), line(pair) as writer:
            writer.say(File(b"f", DRESS, b"abc"), Mark(5, False, 0))
            await writer.hear()
            await writer.hear_until_acked(2)
            assert not pair.standby_epoch.read().is_whole
            writer.say(Mark(6, True, 0))
            await writer.hear_until_acked(3)
            assert pair.standby_epoch.read().is_whole
            assert pair.standby_epoch.seal().version.seq == 6

    asyncio.run(run())


def test_what_a_new_start_of_the_sender_adds_leaves_what_was_whole_at_its_version(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving():
            async with line(pair) as writer:
                await writer.hear()
                writer.say(Mark(6, True, 0))
                await writer.hear_until_acked(1)
            async with line(pair) as same:
                assert await same.hear() == Welcome(b"by hand", 1, 6)
                same.say(File(b"f", DRESS, b"abc"))
                await same.hear_until_acked(1)
                assert pair.standby_epoch.read().is_whole
            async with line(pair, stream=b"another start") as other:
                assert await other.hear() == Welcome(b"", 1, 6)
                other.say(File(b"f", DRESS, b"xyz"))
                await other.hear_until_acked(1)
                role = pair.standby_epoch.read()
                assert (role.is_whole, role.version.seq) == (True, 6)

    asyncio.run(run())


def test_a_mark_counts_only_if_the_sender_had_heard_what_is_lacking(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving(), line(pair) as writer:
            await writer.hear()
            writer.say(Meta(b"f", DRESS, 3), Mark(7, True, 0))
            heard = await writer.hear_until_acked(2)
            assert heard == [Wants(1, b"", (frames.Want(b"f", b""),))]
            assert not pair.standby_epoch.read().is_whole
            writer.say(File(b"f", DRESS, b"abc"), Mark(8, True, 1))
            await writer.hear_until_acked(4)
            assert pair.standby_epoch.read().version.seq == 8

    asyncio.run(run())


def test_no_link_leads_a_frame_out_of_the_tree(pair: Pair, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"abc")
    os.utime(outside / "f", ns=(10**18, 10**18))

    async def run() -> None:
        async with pair.receiving(), line(pair) as writer:
            await writer.hear()
            writer.say(Link(b"d", DRESS, os.fsencode(outside)), Link(b"l", DRESS, os.fsencode(outside / "f")))
            attacks: list[Frame] = [
                File(b"d/f", DRESS, b"bad"),
                File(b"d/new", DRESS, b"bad"),
                Delete(b"d/f"),
                Tail(b"d/f", DRESS, 3, b"bad"),
                Tail(b"l", DRESS, 3, b"bad"),
                Meta(b"l", DRESS._replace(mode=0o777), 3),
                Move(b"d/f", b"stolen", ENTRY),
                Move(b"l", b"d/f", ENTRY),
                Link(b"d/l", DRESS, b"x"),
                frames.Folder(b"d/e", DRESS),
                Listing(b"d", b"", True, False, ()),
                Listing(b"d", b"", True, True, (ENTRY,)),
            ]
            writer.say(*attacks)
            heard = await writer.hear_until_acked(2 + len(attacks))
            assert sum(isinstance(each, Wants) for each in heard) >= len(attacks) - 1

    asyncio.run(run())

    assert tree(outside) == {b"f": tree(outside)[b"f"]}
    assert (outside / "f").read_bytes() == b"abc"
    assert (outside / "f").stat().st_mode & 0o777 == 0o644
    assert not (pair.mirror / "stolen").exists()


def test_bytes_that_are_no_frame_end_the_connection_with_a_reason_and_change_nothing(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving():
            for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"\xff" * 64):
                async with line(pair) as writer:
                    assert isinstance(await writer.hear(), Welcome)
                    writer.say_bytes(junk)
                    assert isinstance(await writer.hear(), Refused)

    asyncio.run(run())

    assert tree(pair.mirror) == {}


def test_a_large_file_gets_no_name_before_all_of_it_is_durable(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving():
            async with line(pair) as writer:
                await writer.hear()
                writer.say(Piece(1, 0, False, b"abc"))
                assert await writer.hear() == Took(1, 3, False)
                writer.say(Placed(1, b"f", DRESS, 3))
                assert isinstance(await writer.hear(), Refused)
            async with line(pair) as writer:
                await writer.hear()
                writer.say(Piece(1, 0, True, b"abc"))
                assert await writer.hear() == Took(1, 3, True)
                writer.say(Placed(1, b"f", DRESS, 3))
                await writer.hear_until_acked(1)

    asyncio.run(run())

    assert (pair.mirror / "f").read_bytes() == b"abc"


def test_a_newer_connection_of_the_same_writer_takes_the_place_of_a_dead_one(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving(), line(pair) as dead:
            await dead.hear()
            async with line(pair) as alive:
                await alive.hear()
                alive.say(File(b"f", DRESS, b"abc"))
                await alive.hear_until_acked(1)
                dead.say(File(b"f", DRESS, b"bad"))
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await dead.hear()

    asyncio.run(run())

    assert (pair.mirror / "f").read_bytes() == b"abc"


def test_a_sender_that_is_no_writer_any_more_ends_by_itself(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            pair.gpu_epoch.hear(View(rev=2, epoch=2, writer=STANDBY, standby=STANDBY))
            await until(lambda: sender.trouble == "this machine is not the writer")

    asyncio.run(run())
