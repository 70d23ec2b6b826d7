"""The walk of a large workspace, by processes of its own: as many as there are processors, up to MAX_WORKERS.

Each takes the next part of the tree when it is done with one, and leaves what it finds in a file in memory: so nobody
waits for anybody, and each holds only a batch at a time. Whoever walked what, the same tree gives the same result.
"""

from __future__ import annotations

import marshal
import os
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, BinaryIO, NamedTuple

from common.snapshots.scan import Excludes, Found, Rest, Scan, Shared, Walk, new_found, shared
from common.snapshots.workers import MAX_WORKERS, Pipe, crew, most

BATCH = 5000
PARTS_MIN, PARTS_MAX = 32, 1024
"""A tree is shared once so many directories wait to be looked into; the tickets of all parts fit into the smallest pipe
that Linux makes, of one page."""
TICKET_BYTES = 4
MANY = 200_000
"""A tree of more stays as its batches were left: as objects a million names take 560 MB, and each process that looks at
them gets pages of its own."""
HEAD = struct.Struct("=IQIQ")
"""Of a batch: turn, order, count, bytes."""
OPENED = 4
"""Batches of such a tree that a process has as objects."""

Parts = Sequence[Sequence[bytes]]


class Walkers:
    """A walk apart. `close` it when `result` is had."""

    def __init__(self, root: bytes, excludes: Excludes) -> None:
        self._root = root
        self._excludes = excludes
        self._files = [os.memfd_create("dumont-walk") for _ in range(MAX_WORKERS)]

    def go(self) -> list[Rest]:
        """In the first of these processes: what is to be given to `result`. Raises `SnapshotError`."""
        walk, waiting = Walk(self._root, self._excludes), deque([b""])
        with self._opened(0) as file:
            while waiting and len(waiting) < PARTS_MIN:
                waiting += walk.look_into(waiting.popleft())
                _leave(file, walk, at_least=BATCH)
            _leave(file, walk)
        parts, others = _parts(list(waiting)), most() - 1
        if len(waiting) < PARTS_MIN or not others:
            self._walk(0, walk, iter(range(len(parts))), parts)
            return [walk.rest()]
        tickets = _tickets(len(parts))

        def join(pipe: Pipe) -> None:
            number = pipe.recv()
            pipe.send(self._walk(number, Walk(self._root, self._excludes), _drawn(tickets), parts))

        with crew(others, join) as crowd:
            for number in range(others):
                crowd.send(number, number + 1)
            mine = self._walk(0, walk, _drawn(tickets), parts)
            return [mine, *map(crowd.answer, range(others))]

    def result(self, rests: Sequence[Rest]) -> Scan:
        """In the engine."""
        batches = sorted(batch for number in range(len(rests)) for batch in self._batches(number))
        several = shared(names for _, _, names in rests)
        skipped = sorted(chain.from_iterable(more for more, _, _ in rests))
        excluded = sorted(chain.from_iterable(more for _, more, _ in rests))
        if sum(batch.names for batch in batches) > MANY:
            return Scan(self._root, Packed([_with_names(batch, several) for batch in batches]), skipped, excluded)
        found = list(chain.from_iterable(map(_opened, batches)))
        return Scan(self._root, several.told(found), skipped, excluded)

    def close(self) -> None:
        for file in self._files:
            os.close(file)

    def _walk(self, number: int, walk: Walk, turns: Iterator[int], parts: Parts) -> Rest:
        with self._opened(number) as file:
            for turn in turns:
                walk.turn = turn + 1
                for directory in parts[turn]:
                    for _ in walk.below(directory):
                        _leave(file, walk, at_least=BATCH)
                _leave(file, walk)
        return walk.rest()

    def _opened(self, number: int) -> BinaryIO:
        return open(self._files[number], "ab", closefd=False)

    def _batches(self, number: int) -> Iterator[Batch]:
        with open(self._files[number], "rb", closefd=False) as file:
            file.seek(0)
            while head := file.read(HEAD.size):
                turn, order, count, size = HEAD.unpack(head)
                yield Batch(turn, order, count, file.read(size))
        os.ftruncate(self._files[number], 0)


class Batch(NamedTuple):
    """Batches are in order when what they hold is."""

    turn: int
    order: int
    """Among those of its turn."""
    names: int
    content: bytes
    """By `marshal`, which costs a tenth of pickling: it is for the other half of the same program alone."""


class Packed(Sequence[Found]):
    """What was found, a batch of it at a time as objects."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._ends = list(accumulate(batch.names for batch in batches))
        self._opened = lru_cache(OPENED)(lambda number: _opened(batches[number]))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> Any:
        """One; slices are nobody's need."""
        number = bisect_right(self._ends, place)
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._opened(number)[place - self._ends[number]]

    def __iter__(self) -> Iterator[Found]:
        return chain.from_iterable(map(_opened, self._batches))


def _leave(file: BinaryIO, walk: Walk, *, at_least: int = 1) -> None:
    if len(walk.found) >= at_least:
        content = marshal.dumps(list(map(tuple, walk.found)))
        file.write(HEAD.pack(walk.turn, file.tell(), len(walk.found), len(content)) + content)
        walk.found.clear()


def _opened(batch: Batch) -> list[Found]:
    return list(map(new_found, marshal.loads(batch.content)))


def _with_names(batch: Batch, several: Shared) -> Batch:
    if not several.others:
        return batch
    found = several.told(_opened(batch))
    return batch._replace(names=len(found), content=marshal.dumps(list(map(tuple, found))))


def _parts(waiting: list[bytes]) -> Parts:
    size = -(-len(waiting) // PARTS_MAX) or 1
    return [waiting[at : at + size] for at in range(0, len(waiting), size)]


def _tickets(count: int) -> int:
    """A pipe with a number for each part: reading it is drawing one, whoever reads."""
    tickets, writer = os.pipe()
    os.write(writer, b"".join(number.to_bytes(TICKET_BYTES, "little") for number in range(count)))
    os.close(writer)
    return tickets


def _drawn(tickets: int) -> Iterator[int]:
    while ticket := os.read(tickets, TICKET_BYTES):
        yield int.from_bytes(ticket, "little")
