"""A connection's end: several things go on at once, and the first of them that ends, ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def until_one_ends(*works: Awaitable[object]) -> None:
    """Raises what the first one to end raised. The others are cancelled, and have ended before this returns."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
