"""The first of a connection's tasks that ends, ends them all."""

from __future__ import annotations

import asyncio

import pytest

from common.host.livesync.ending import until_one_ends


async def for_ever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)  # what it does at its end takes a turn
        ended.append(name)


async def failing(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


def test_the_others_have_ended_when_it_returns() -> None:
    ended: list[str] = []

    asyncio.run(until_one_ends(for_ever(ended, "a"), asyncio.sleep(0), for_ever(ended, "b")))

    assert sorted(ended) == ["a", "b"]


def test_it_raises_what_ended_them() -> None:
    ended: list[str] = []

    with pytest.raises(OSError, match="cut"):
        asyncio.run(until_one_ends(for_ever(ended, "a"), failing(OSError("cut"))))

    assert ended == ["a"]


def test_whoever_cancels_it_finds_all_of_them_ended() -> None:
    ended: list[str] = []

    async def cancelled() -> None:
        task = asyncio.ensure_future(until_one_ends(for_ever(ended, "a"), for_ever(ended, "b")))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended) == ["a", "b"]

    asyncio.run(cancelled())
