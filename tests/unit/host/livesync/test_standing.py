"""How an end says that it stands, and what a machine that is fenced makes of its last word."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from common.host.livesync.send import Sender
from common.host.livesync.standing import MARGIN_S, STANDING_FILE, confirmed_until_ns, read_standing, write_standing
from common.snapshots.engine import changed_since
from tests.livesync_pair import Pair, save, until

LAG_S = 1.0


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@contextlib.asynccontextmanager
async def telling(pair: Pair, sender: Sender):
    task = asyncio.ensure_future(write_standing(pair.gpu_home, lambda: sender.standing))
    yield
    task.cancel()


def without_margin(pair: Pair) -> None:
    """As if what stands there had been written MARGIN_S later: a test need not wait for it."""
    file = pair.gpu_home / STANDING_FILE
    written_at_ns = file.stat().st_mtime_ns
    os.utime(file, ns=(written_at_ns, written_at_ns + int(MARGIN_S * 1e9)))


def test_what_was_touched_after_the_last_confirmed_moment_is_what_a_fenced_machine_may_alone_have(pair: Pair) -> None:
    async def story() -> None:
        async with pair.sending() as sender:
            async with pair.receiving():
                save(pair.gpu / "old.txt", b"on both")
                await until(lambda: (pair.mirror / "old.txt").exists() and sender.standing.is_whole)
                await until(lambda: sender.standing.lag_s == 0)
                async with telling(pair, sender):
                    await until(lambda: read_standing(pair.gpu_home).is_whole)
                without_margin(pair)
            save(pair.gpu / "new.txt", b"only here")

    asyncio.run(story())

    assert changed_since(pair.gpu, None, confirmed_until_ns(pair.gpu_home)) == {b"new.txt"}


def test_a_word_that_was_said_after_the_cut_is_older_by_what_is_not_confirmed(pair: Pair) -> None:
    async def story() -> None:
        async with pair.sending() as sender:
            async with pair.receiving():
                await until(lambda: sender.standing.is_whole)
            save(pair.gpu / "new.txt", b"only here")
            await until(lambda: (sender.standing.lag_s or 0) > LAG_S)
            async with telling(pair, sender):
                await until(lambda: read_standing(pair.gpu_home).is_whole)
            without_margin(pair)

    asyncio.run(story())

    found = confirmed_until_ns(pair.gpu_home)
    assert found is not None
    heard_within_s = (found - (pair.gpu / "new.txt").stat().st_ctime_ns) / 1e9
    assert heard_within_s < LAG_S / 2 < MARGIN_S, "but for the lag it would be later by all of it"


def test_of_a_copy_that_was_never_whole_nothing_is_known_to_be_confirmed(pair: Pair) -> None:
    assert confirmed_until_ns(pair.gpu_home) is None

    async def story() -> None:
        async with pair.sending() as sender, telling(pair, sender):
            await until((pair.gpu_home / STANDING_FILE).exists)

    asyncio.run(story())
    assert confirmed_until_ns(pair.gpu_home) is None
