"""What changes in the workspace is on the mirror: every kind of change, and what neither end may ever do."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from common.domain.role import View
from common.host.livesync.errors import NotInSync
from common.host.livesync.inotify import READ_BYTES
from common.host.livesync.send import Sender
from common.host.livesync.stream import OnItsWay
from common.snapshots.limits import MTIME_NS
from tests.livesync_pair import GPU, STANDBY, Pair, save, tree, until
from tests.snapshots_fixtures import mapped

BIG_BYTES = 3 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def mirrored(pair: Pair, *acts: Callable[[Path], object], compares: bool = False) -> None:
    """Each act on the workspace in turn; after each the barrier, and then both trees are equal."""

    async def run() -> None:
        async with pair.syncing() as sender:
            for act in acts:
                act(pair.gpu)
                await sender.wait(30, compares=compares)
                assert tree(pair.mirror) == tree(pair.gpu)

    asyncio.run(run())


def test_what_is_there_before_the_start_is_brought_over(pair: Pair) -> None:
    (pair.gpu / "deep/er").mkdir(parents=True)
    (pair.gpu / "empty").mkdir(mode=0o750)
    (pair.gpu / "deep/er/file").write_bytes(b"content")
    (pair.gpu / "big").write_bytes(os.urandom(BIG_BYTES))
    (pair.gpu / "script").touch(0o755)
    (pair.gpu / "link").symlink_to("../outside")
    Path(os.fsdecode(os.fsencode(pair.gpu) + b"/not utf-8 \xff\xfe")).write_bytes(b"x")
    (pair.mirror / "stale/below").mkdir(parents=True)
    (pair.mirror / "deep").symlink_to("/nowhere")

    mirrored(pair, lambda _root: None)


def test_every_kind_of_change_is_brought_over(pair: Pair) -> None:
    mirrored(
        pair,
        lambda root: save(root / "saved", b"one"),
        lambda root: save(root / "saved", b"two"),
        lambda root: (root / "a/b/c").mkdir(parents=True),
        lambda root: (root / "a/b/c/f").write_bytes(b"f"),
        lambda root: (root / "a").rename(root / "moved"),
        lambda root: (root / "moved/b/c/f").chmod(0o600),
        lambda root: os.utime(root / "moved/b/c/f", ns=(1, 1)),
        lambda root: (root / "link").symlink_to("moved"),
        lambda root: ((root / "link").unlink(), (root / "link").mkdir()),
        lambda root: ((root / "link").rmdir(), (root / "link").write_bytes(b"now a file")),
        lambda root: os.truncate(root / "link", 3),
        lambda root: shutil.rmtree(root / "moved"),
        lambda root: os.link(root / "saved", root / "same"),
        lambda root: (root / "saved").write_bytes(b"written through one of its names"),
        lambda root: (root / "same").unlink(),
    )


@pytest.mark.parametrize("year", [2200, 2300])
def test_a_file_dated_far_away_ends_no_stream(pair: Pair, year: int) -> None:
    """It is on the mirror with the nearest time that a frame holds, is sent once, and others follow."""
    far_s = (year - 1970) * 31_556_952
    (pair.gpu / "before").write_bytes(b"x")
    os.utime(pair.gpu / "before", (far_s, far_s))

    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            (pair.gpu / "after").write_bytes(b"y")
            os.utime(pair.gpu / "after", (far_s, far_s))
            await sender.wait(30, compares=True)

    asyncio.run(run())
    for name, content in (("before", b"x"), ("after", b"y")):
        assert (pair.mirror / name).read_bytes() == content
        assert (pair.mirror / name).stat().st_mtime_ns == MTIME_NS


def test_an_unpacked_tree_that_moves_in_and_out_is_followed(pair: Pair, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for number in range(300):
        file = outside / f"d{number % 7}/e{number % 3}/f{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % number)

    mirrored(
        pair,
        lambda root: outside.rename(root / "in"),
        lambda root: (root / "in/d3").rename(tmp_path / "out"),
        lambda root: (root / "in/new").write_bytes(b"still watched"),
    )


def test_a_moved_file_and_a_moved_directory_are_not_sent_again(pair: Pair) -> None:
    async def run() -> int:
        async with pair.syncing() as sender:
            (pair.gpu / "d").mkdir()
            (pair.gpu / "d/big").write_bytes(os.urandom(BIG_BYTES))
            await sender.wait(30)
            there = (pair.mirror / "d/big").stat().st_ino
            (pair.gpu / "d").rename(pair.gpu / "e")
            await sender.wait(30)
            (pair.gpu / "e/big").rename(pair.gpu / "large")
            await sender.wait(30)
            assert pair.is_equal()
            return there

    assert asyncio.run(run()) == (pair.mirror / "large").stat().st_ino


def test_of_a_growing_log_only_what_it_gained_is_sent_in_place(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            (pair.gpu / "log").write_bytes(os.urandom(2 << 20))
            await sender.wait(30)
            there = (pair.mirror / "log").stat().st_ino
            with (pair.gpu / "log").open("ab", buffering=0) as log:
                for number in range(20):
                    log.write(b"line %d\n" % number)
                    await until(lambda: (pair.mirror / "log").read_bytes() == (pair.gpu / "log").read_bytes())
            await sender.wait(30)
            assert (pair.mirror / "log").stat().st_ino == there

    asyncio.run(run())


@pytest.mark.parametrize("size", [100_000, BIG_BYTES])
def test_a_file_that_grew_and_was_changed_before_its_end_is_sent_again(pair: Pair, size: int) -> None:
    def grow_and_change(root: Path) -> None:
        with (root / "table").open("r+b") as table:
            table.write(b"a header that tells the new length")
            table.seek(0, os.SEEK_END)
            table.write(b"a row")

    mirrored(pair, lambda root: (root / "table").write_bytes(os.urandom(size)), grow_and_change, grow_and_change)


def test_a_file_changed_before_its_end_while_its_tail_is_on_its_way_is_sent_again(pair: Pair) -> None:
    def is_half_sent(sender: Sender) -> bool:
        change = sender._book.changes.get(b"table")
        return change is not None and bool(change.proof)

    async def run() -> None:
        async with pair.syncing() as sender:
            (pair.gpu / "table").write_bytes(os.urandom(BIG_BYTES))
            await sender.wait(30)
            with (pair.gpu / "table").open("ab") as table:
                table.write(os.urandom(16 << 20))
            while not is_half_sent(sender):
                await asyncio.sleep(0)
            with (pair.gpu / "table").open("r+b") as table:
                table.write(b"a header that tells the new length")
            await sender.wait(30)
            assert pair.is_equal()

    asyncio.run(run())


def test_a_barrier_checks_a_log_that_nobody_closed(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            (pair.gpu / "log").write_bytes(os.urandom(2 << 20))
            await sender.wait(30)
            with (pair.gpu / "log").open("r+b", buffering=0) as log:
                log.seek(0, os.SEEK_END)
                log.write(b"a line")
                await until(lambda: (pair.mirror / "log").stat().st_size == (pair.gpu / "log").stat().st_size)
                log.seek(10)
                log.write(b"not append-only after all")
                await sender.wait(30)
                assert pair.is_equal()

    asyncio.run(run())


def test_small_files_overtake_a_large_one(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            (pair.gpu / "large").write_bytes(os.urandom(64 << 20))
            await until(lambda: is_under_way(sender))
            (pair.gpu / "smaller").write_bytes(os.urandom(1 << 20))
            save(pair.gpu / "small", b"first")
            await sender.wait(60)

    asyncio.run(run())

    order = [ack.path for ack in pair.acks if ack.path in (b"small", b"smaller", b"large") and ack.size]
    assert order == [b"small", b"smaller", b"large"]


def is_under_way(sender: Sender) -> bool:
    """Some of a large file is over there."""
    stream = sender._out.stream
    return stream is not None and any(transfer.took for transfer in stream.transfers.values())


def is_read(sender: Sender) -> bool:
    """All of a large file is sent, and it has no name over there yet."""
    stream = sender._out.stream
    return stream is not None and any(transfer.is_read for transfer in stream.transfers.values())


def test_what_is_small_now_does_not_become_again_what_it_was_when_it_was_large(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            for _ in range(3):
                (pair.gpu / "log").write_bytes(os.urandom(16 << 20))
                while not is_read(sender):
                    await asyncio.sleep(0)
                (pair.gpu / "log").write_bytes(b"rotated")
                await sender.wait(30)
                assert pair.is_equal()

    asyncio.run(run())


def test_the_barrier_reads_all_that_the_kernel_has_to_tell(pair: Pair) -> None:
    """More events than one reading takes, and what matters at their end."""

    async def run() -> None:
        async with pair.syncing() as sender:
            for name in ("a", "b"):
                (pair.gpu / name).touch()
            await sender.wait(30)
            for turn in range(READ_BYTES // 32 // 2 + 500):
                for name in ("a", "b"):
                    os.utime(pair.gpu / name, ns=(turn, turn))
            (pair.gpu / "last").write_bytes(b"last")
            sender._up_to_now()
            assert b"last" in sender._book.changes
            await sender.wait(30)
            assert pair.is_equal()

    asyncio.run(run())


def test_a_half_sent_file_is_never_seen_under_its_name(pair: Pair) -> None:
    (pair.gpu / "large").write_bytes(os.urandom(32 << 20))

    async def run() -> None:
        async with pair.sending():
            async with pair.receiving() as receiver:
                parts = pair.mirror / ".dumont-part-livesync"
                await until(lambda: any(part.stat().st_size > 1 << 20 for part in parts.iterdir()))
                assert not (pair.mirror / "large").exists()
            assert not receiver.standing.is_whole
            assert not (pair.mirror / "large").exists()
            assert list(parts.iterdir()) == []

    asyncio.run(run())


def test_a_file_rewritten_while_it_is_read_arrives_as_it_ends(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            for _ in range(6):
                (pair.gpu / "model").write_bytes(os.urandom(BIG_BYTES))
                await asyncio.sleep(0.004)
            await sender.wait(30)
            assert pair.is_equal()

    asyncio.run(run())


def test_a_file_that_vanishes_while_it_is_sent_is_gone_over_there(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            (pair.gpu / "keep").write_bytes(os.urandom(BIG_BYTES))
            (pair.gpu / "gone").write_bytes(os.urandom(16 << 20))
            await asyncio.sleep(0.02)
            (pair.gpu / "gone").unlink()
            await sender.wait(30)
            assert pair.is_equal()

    asyncio.run(run())


def test_what_snapshots_leave_out_is_left_out_and_left_alone(pair: Pair) -> None:
    (pair.gpu / ".cache/pip").mkdir(parents=True)
    (pair.gpu / ".cache/pip/wheel").write_bytes(b"x")
    (pair.mirror / "lost+found").mkdir()

    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            (pair.gpu / ".dumontignore").write_bytes(b"*.tmp\n")
            await sender.wait(30)
            (pair.gpu / "x.tmp").write_bytes(b"x")
            (pair.gpu / ".cache/pip/wheel").write_bytes(b"y")
            (pair.gpu / "y").write_bytes(b"y")
            await sender.wait(30)

    asyncio.run(run())

    assert set(tree(pair.mirror)) == {b".cache", b"lost+found", b".dumontignore", b"y"}


def test_a_line_of_the_ignore_file_that_is_no_pattern_ends_neither_side(pair: Pair) -> None:
    lines = b"*.tmp\nruns[2024-01]/\n!\nfoo\\\n*.log\n"

    async def run() -> None:
        (pair.gpu / ".dumontignore").write_bytes(lines)
        async with pair.syncing() as sender:
            await sender.wait(30)
            (pair.gpu / ".dumontignore").write_bytes(lines + b"[z-a]\n*.out\n")
            await sender.wait(30)
            for name in ("x.tmp", "x.log", "x.out", "y"):
                (pair.gpu / name).write_bytes(b"x")
            await sender.wait(30, compares=True)

    asyncio.run(run())

    assert set(tree(pair.mirror)) == {b".dumontignore", b"y"}


def test_both_sides_prove_with_one_hash_that_they_are_equal(pair: Pair) -> None:
    for number in range(50):
        (pair.gpu / f"d{number % 5}").mkdir(exist_ok=True)
        (pair.gpu / f"d{number % 5}/{number}").write_bytes(b"%d" % number)

    async def run() -> None:
        async with pair.receiving() as receiver, pair.sending() as sender:
            await sender.wait(30)
            await sender.wait(30, compares=True)
            assert sender.standing.root
            assert sender.standing.root == receiver.standing.root
            role = pair.standby_epoch.read()
            assert role.is_whole and role.version.seq == receiver.standing.seq >= sender.standing.seq > 0

    asyncio.run(run())


def test_a_comparing_barrier_finds_what_was_stored_to_mapped_memory_without_a_word(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            await sender.wait(30)
            for turn in (b"one1", b"two2"):
                memory[:4] = turn
                await sender.wait(30, compares=True)
                assert tree(pair.mirror) == tree(pair.gpu)
                was_whole.append(sender.standing.is_whole)
            there = (pair.mirror / "state").stat().st_ino
            await sender.wait(30, compares=True)
            assert (pair.mirror / "state").stat().st_ino == there  # nothing was stored since: nothing is sent

    was_whole: list[bool] = []
    with mapped(pair.gpu / "state") as memory:
        asyncio.run(run())
    assert all(was_whole)


def test_a_pass_finds_what_no_event_told(pair: Pair) -> None:
    async def run() -> None:
        async with pair.syncing() as sender:
            (pair.gpu / "a").write_bytes(b"right")
            (pair.gpu / "d").mkdir()
            await sender.wait(30)
            (pair.mirror / "a").write_bytes(b"wrong")
            (pair.mirror / "d/too much").touch()
            await sender.wait(30, compares=True)
            assert pair.is_equal()

    asyncio.run(run())


def test_lost_events_are_made_good(pair: Pair) -> None:
    """More than the kernel's queue holds, while nobody reads it; deletes and directories among them."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    files = 2000

    async def run() -> None:
        async with pair.syncing() as sender:
            for number in range(files):
                (pair.gpu / f"{number}").write_bytes(b"before")
            (pair.gpu / "doomed/below").mkdir(parents=True)
            while sender.standing.root is None:  # no other pass is due that would find it
                await sender.wait(60, compares=True)
            for turn in range(limit // files + 1):
                for number in range(files):
                    os.utime(pair.gpu / f"{number}", ns=(turn, turn))
            for number in range(0, files, 10):
                (pair.gpu / f"{number}").write_bytes(b"after %d" % number)
            shutil.rmtree(pair.gpu / "doomed")
            (pair.gpu / "new").mkdir()
            (pair.gpu / "new/file").write_bytes(b"x")
            await sender.wait(60)
            assert pair.is_equal()
            (pair.gpu / "new/file").write_bytes(b"watched again")
            await sender.wait(60)
            assert pair.is_equal()

    asyncio.run(run())


def test_after_a_cut_only_what_is_not_confirmed_is_sent_again(pair: Pair) -> None:
    async def run() -> None:
        async with pair.sending() as sender:
            async with pair.receiving():
                (pair.gpu / "before").write_bytes(b"before")
                await sender.wait(30)
            passes = sender._comparison.begun
            (pair.gpu / "before").unlink()
            (pair.gpu / "d").mkdir()
            (pair.gpu / "d/meanwhile").write_bytes(b"meanwhile")
            async with pair.receiving():
                await sender.wait(30)
                assert pair.is_equal()
            assert sender._comparison.begun == passes

    asyncio.run(run())


def test_a_restarted_sender_compares_everything_and_its_numbers_only_grow(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving():
            async with pair.sending() as sender:
                (pair.gpu / "a").write_bytes(b"a")
                (pair.gpu / "b").write_bytes(b"b")
                first = await sender.wait(30)
            (pair.gpu / "a").write_bytes(b"changed while nobody watched")
            (pair.gpu / "b").unlink()
            async with pair.sending() as sender:
                assert await sender.wait(30) > first
                assert pair.is_equal()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_in_whatever_order_the_trees_become_equal(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    rests: list[Callable[[], Awaitable[None]]] = [
        lambda: asyncio.sleep(0),
        lambda: asyncio.sleep(0.001),
        lambda: asyncio.sleep(0.004),
    ]

    async def run() -> None:
        async with pair.syncing() as sender:
            for turn in range(300):
                scramble(pair.gpu, chance)
                if chance.random() < (0.0, 0.3, 1.0)[seed % 3]:
                    await chance.choice(rests)()
                if turn % 100 == 99:
                    await sender.wait(60, compares=True)
                    assert tree(pair.mirror) == tree(pair.gpu)

    asyncio.run(run())


def scramble(root: Path, chance: random.Random) -> None:
    """One random change. Links are never followed: they lead out of the workspace."""
    folders, files, names = [root], [], []
    for folder, below, plain in os.walk(root):
        for name in (*below, *plain):
            path = Path(folder) / name
            names.append(path)
            if not path.is_symlink():
                (folders if path.is_dir() else files).append(path)

    def somewhere() -> Path:
        return chance.choice(folders) / chance.choice("abcdefgh")

    def write(path: Path, data: bytes, flags: int = os.O_TRUNC) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(data)

    def remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    acts: list[Callable[[], object]] = [
        lambda: write(somewhere(), chance.randbytes(chance.randrange(9000))),
        lambda: write(somewhere(), chance.randbytes(chance.randrange(300_000, 900_000))),
        lambda: write(chance.choice(files), chance.randbytes(5000), os.O_APPEND),
        lambda: write(chance.choice(files), b"from the start", 0),
        lambda: somewhere().mkdir(),
        lambda: somewhere().mkdir(),
        lambda: remove(chance.choice(names)),
        lambda: chance.choice(names).rename(somewhere()),
        lambda: chance.choice(names).rename(somewhere()),
        lambda: chance.choice(folders[1:]).rename(somewhere()),
        lambda: somewhere().symlink_to(chance.choice(["a", "../b", "/nonexistent/target"])),
        lambda: chance.choice([*folders[1:], *files]).chmod(chance.choice([0o700, 0o755, 0o744])),
        lambda: save(chance.choice(files), chance.randbytes(3000)),
        lambda: os.link(chance.choice(files), somewhere()),
        lambda: os.truncate(chance.choice(files), chance.randrange(4000)),
        lambda: os.utime(chance.choice([*folders, *files])),
    ]
    try:
        chance.choice(acts)()
    except (OSError, IndexError):
        return  # it was not possible here


def test_what_is_confirmed_is_there_at_that_moment(pair: Pair) -> None:
    """Also when the mirror lacks what a move supposes, and the content has to follow."""
    missing: list[bytes] = []

    def is_there(sent: OnItsWay) -> None:
        there = pair.mirror / os.fsdecode(sent.path)
        if sent.mtime_ns and not (there.exists() and there.stat().st_mtime_ns >= sent.mtime_ns):
            missing.append(sent.path)

    async def run() -> None:
        async with pair.receiving(), pair.sending(ack=is_there) as sender:
            for turn in range(20):
                for number in range(20):
                    save(pair.gpu / f"s{number}", b"%d" % turn)
                    await asyncio.sleep(0)
                (pair.gpu / "a").write_bytes(b"%d" % turn)
                await sender.wait(30)
                (pair.mirror / "a").unlink()
                (pair.gpu / "a").rename(pair.gpu / f"b{turn}")
                await sender.wait(30)
            assert pair.is_equal()

    asyncio.run(run())

    assert missing == []


def test_a_restore_on_the_standby_between_two_connections_is_seen(pair: Pair) -> None:
    async def run() -> None:
        async with pair.receiving():
            async with pair.sending() as sender:
                (pair.gpu / "d").mkdir()
                (pair.gpu / "d/a").write_bytes(b"a")
                await sender.wait(30)
            shutil.rmtree(pair.mirror / ".dumont-part-livesync")
            (pair.mirror / "d").rename(pair.mirror / "old")
            (pair.mirror / "d").mkdir()
            async with pair.sending() as sender:
                (pair.gpu / "d/a").write_bytes(b"b")
                await sender.wait(30)
                assert pair.is_equal()

    asyncio.run(run())


# --- the barrier


def test_cut_in_the_instant_in_which_the_barrier_returned_nothing_is_missing(pair: Pair) -> None:
    async def run() -> None:
        for turn in range(20):
            async with pair.syncing() as sender:
                await sender.wait(30)
                for number in range(40):
                    save(pair.gpu / f"s{number}", b"%d %d" % (turn, number))
                (pair.gpu / f"new{turn}/deep/er").mkdir(parents=True)
                (pair.gpu / f"new{turn}/deep/er/file").write_bytes(os.urandom(300_000))
                await sender.wait(30)
                at_that_instant = tree(pair.mirror)
            assert at_that_instant == tree(pair.gpu)

    asyncio.run(run())


def test_without_an_attached_standby_the_barrier_says_so_at_once(pair: Pair) -> None:
    pair.hear(View(rev=2, epoch=1, writer=GPU, standby=STANDBY, mirror=None))

    async def run() -> None:
        async with pair.syncing() as sender:
            await until(lambda: sender.standing.is_whole)
            with pytest.raises(NotInSync, match="no standby is attached"):
                await sender.wait(30)

    asyncio.run(run())


def test_a_barrier_that_is_not_reached_in_time_fails_with_the_reason(pair: Pair) -> None:
    async def run() -> None:
        async with pair.sending() as sender:
            async with pair.receiving():
                await sender.wait(30)
            (pair.gpu / "a").write_bytes(b"nobody has it")
            with pytest.raises(NotInSync, match=r"after 0\.3 s: "):
                await sender.wait(0.3)
            standing = sender.standing
            assert standing.backlog_files >= 1 and standing.lag_s is not None and standing.lag_s >= 0.3

    asyncio.run(run())


def test_a_draining_standby_is_no_place_to_be_safe_in(pair: Pair) -> None:
    pair.hear(View(rev=2, epoch=1, writer=GPU, standby=STANDBY, mirror=STANDBY, is_draining=True))

    async def run() -> None:
        async with pair.syncing() as sender:
            with pytest.raises(NotInSync):
                await sender.wait(5)

    asyncio.run(run())
