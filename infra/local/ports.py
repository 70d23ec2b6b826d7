"""Ports of programs that are chosen now and opened later, by other processes."""

from __future__ import annotations

import itertools
import os
import socket

FIRST_PORT = 10_000
BLOCK = 16
BLOCKS = 1_400
"""10,000 to 32,399: below the ports that Linux gives to outgoing connections and to whoever asks for any (32,768)."""
STRIDE = 97
"""Blocks between two choices of one process: its neighbour by process id meets them only after 1,299 choices."""
_choices = itertools.count()


def fresh_ports(count: int) -> list[int]:
    """For a process that chooses often: other ports at every call, though nothing listens on the earlier ones yet."""
    return free_ports(count, after=next(_choices) * STRIDE)


def free_ports(count: int, *, after: int = 0) -> list[int]:
    """`count` (at most BLOCK) ports of 127.0.0.1 on which nothing listens. `after` = blocks that this process took.

    Two processes that choose at the same time must not choose alike, though neither listens yet: each begins to look
    at the block of its own process id. Raises `OSError` if no block is free.
    """
    assert count <= BLOCK
    for step in range(after, BLOCKS + after):
        first = FIRST_PORT + (os.getpid() + step) % BLOCKS * BLOCK
        if all(_is_free(port) for port in range(first, first + count)):
            return list(range(first, first + count))
    raise OSError("no ports are free on 127.0.0.1")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
