"""Who looks at the front door, and a naive check beside the watchdog; each a process in a network of its own.

    python -m tests.bench.failover_eyes user <host> <port>      a new connection each 20 ms: who answers, and when
    python -m tests.bench.failover_eyes naive <host> <port>     two failed connects of 0.1 s in a row are "down"

Each prints one line per finding, times by the machine's steady clock, which all namespaces share.
"""

from __future__ import annotations

import asyncio
import sys
import time

EVERY_S, GIVE_UP_S = 0.02, 2.0
NAIVE_EVERY_S, NAIVE_TIMEOUT_S, NAIVE_FALL, NAIVE_RISE = 0.1, 0.1, 2, 2


async def ask(host: str, port: int, timeout_s: float) -> str:
    """What the first bytes say; empty = nothing."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            return (await reader.read(16)).decode()
    except (OSError, TimeoutError):
        return ""
    finally:
        if writer:
            writer.close()


async def user(host: str, port: int) -> None:
    async def once() -> None:
        if who := await ask(host, port, GIVE_UP_S):
            print(time.monotonic(), who, flush=True)

    tasks: set[asyncio.Task[None]] = set()
    while True:
        task = asyncio.create_task(once())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(EVERY_S)


async def naive(host: str, port: int) -> None:
    is_up, failed, passed = True, 0, 0
    while True:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(NAIVE_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
            failed, passed = 0, passed + 1
        except (OSError, TimeoutError):
            failed, passed = failed + 1, 0
        if is_up and failed >= NAIVE_FALL:
            is_up = False
            print(time.monotonic(), "down", flush=True)
        elif not is_up and passed >= NAIVE_RISE:
            is_up = True
        await asyncio.sleep(max(0.0, NAIVE_EVERY_S - (time.monotonic() - began_s)))


if __name__ == "__main__":
    asyncio.run({"user": user, "naive": naive}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
