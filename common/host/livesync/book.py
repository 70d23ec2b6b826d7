"""What has changed and is not confirmed: each path once, numbered, with what is known of the change. Pure.

A change is of a path, not of bytes: whoever sends it looks at the path then, so that ten saves are one change and a
change that comes while another is on its way is a new one. `floor` is the number up to which everything lies in the
stream: what a Mark says.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

OPEN_QUIET_S = 0.25
"""A file that somebody still writes is sent when nothing was written for so long ..."""
OPEN_MOST_S = 2.0
"""... or when it has been written for so long."""
TORN_WAIT_S, TORN_WAIT_MOST_S = 0.25, 5.0
"""Before a file that was written while it was read is read again: twice as long every time."""
CHANGES_MAX = 200_000
"""More are not kept one by one (about 0.4 kB each): everything is compared instead, as after a lost event."""


@dataclass(slots=True, eq=False)
class Change:
    path: bytes
    seq: int
    since_s: float
    ready_s: float
    is_closed: bool = False
    """Nobody was writing it when it was last heard of."""
    has_content: bool = False
    """More than mode, owner or time may be new."""
    is_tree: bool = False
    """A directory whose names are to be compared, and all below it."""
    is_echo: bool = False
    """Of another name of the same file: it is not passed on."""
    digest: bytes = b""
    """Of what the receiver has, when that may be the content already."""
    proof: tuple[int, ...] = ()
    """Of what was found equal to what the receiver has; it says nothing of what was written since."""
    tries: int = 0

    @property
    def wait_s(self) -> float:
        """Until it is tried again."""
        return min(TORN_WAIT_MOST_S, TORN_WAIT_S * 2.0 ** min(self.tries - 1, 10)) if self.tries else 0.0


class Book:
    """`now_s` is a monotonic clock's, passed in."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        """Of the newest change."""
        self.changes: dict[bytes, Change] = {}
        self._queue: list[tuple[float, int, Change]] = []
        self._order = 0
        self._open: Counter[int] = Counter()
        self._lowest: list[int] = []

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    # --- what happens

    def touch(
        self,
        path: bytes,
        now_s: float,
        *,
        is_closed: bool = True,
        has_content: bool = True,
        is_tree: bool = False,
        seq: int | None = None,
        is_echo: bool = False,
        digest: bytes = b"",
        at_once: bool = False,
    ) -> Change:
        """The path's open change, a new one if it has none; it keeps its number and its age."""
        change = self.changes.get(path)
        if change is None:
            change = Change(path, self.next_seq() if seq is None else seq, now_s, now_s, is_echo=is_echo)
            self.changes[path] = change
            self.hold(change.seq)
        elif seq is not None and seq < change.seq:
            self.hold(seq)
            self.release(change.seq)
            change.seq = seq
        change.is_closed |= is_closed
        change.has_content |= has_content
        change.is_tree |= is_tree
        change.is_echo &= is_echo
        change.digest = digest
        change.proof = () if has_content else change.proof
        self.put_off(change, now_s if change.is_closed or at_once else self.quiet_at_s(change, now_s))
        return change

    def quiet_at_s(self, change: Change, now_s: float) -> float:
        return min(now_s + OPEN_QUIET_S, max(change.since_s + OPEN_MOST_S, now_s))

    def put_off(self, change: Change, ready_s: float) -> None:
        change.ready_s = ready_s
        self._order += 1
        heapq.heappush(self._queue, (ready_s, self._order, change))

    def move(self, source: bytes, path: bytes, now_s: float) -> bool:
        """Open changes of the path, and below it, are of its new name; was the path itself one of them?"""
        below = source + b"/"
        moved = [known for known in self.changes if known == source or known.startswith(below)]
        for known in moved:
            change = self.changes.pop(known)
            change.path = path + known[len(source) :]
            self.put_back(change, max(change.ready_s, now_s))
        return source in moved

    # --- what is sent

    def next_ready(self, now_s: float) -> Change | None:
        """The change that has been ready the longest; taken out, and its number held until `release`."""
        while self._queue and self._queue[0][0] <= now_s:
            ready_s, _, change = heapq.heappop(self._queue)
            if self.changes.get(change.path) is change and change.ready_s == ready_s:
                del self.changes[change.path]
                return change
        return None

    def take(self, path: bytes) -> Change | None:
        """The path's open change, ready or not; taken out, and its number held."""
        return self.changes.pop(path, None)

    def put_back(self, change: Change, ready_s: float) -> None:
        """Not sent after all: its number is still held. A newer change of the path becomes part of it."""
        newer = self.changes.get(change.path)
        if newer:
            newer.since_s = min(newer.since_s, change.since_s)
            newer.has_content |= change.has_content
            newer.is_closed |= change.is_closed
            newer.is_tree |= change.is_tree
            newer.is_echo &= change.is_echo
            newer.tries = max(newer.tries, change.tries)
            if change.seq < newer.seq:
                self.release(newer.seq)
                newer.seq = change.seq
            else:
                self.release(change.seq)
            return
        self.changes[change.path] = change
        self.put_off(change, ready_s)

    def hurry(self, now_s: float) -> None:
        """Everything is ready now, files that somebody still writes too."""
        for change in self.changes.values():
            change.is_closed = True
            if change.ready_s > now_s:
                self.put_off(change, now_s)

    @property
    def ready_at_s(self) -> float | None:
        """When the next is ready; it may be that it is not needed any more."""
        return self._queue[0][0] if self._queue else None

    # --- numbers

    def hold(self, seq: int) -> None:
        """The floor stays below this number until it is released as often as it was held."""
        if not self._open[seq]:
            heapq.heappush(self._lowest, seq)
        self._open[seq] += 1

    def release(self, seq: int) -> None:
        self._open[seq] -= 1
        if not self._open[seq]:
            del self._open[seq]

    @property
    def floor(self) -> int:
        while self._lowest and self._lowest[0] not in self._open:
            heapq.heappop(self._lowest)
        return self._lowest[0] - 1 if self._lowest else self.seq

    def give_up(self) -> int:
        """Drops every change, for everything will be compared; the number that this comparison stands for: held."""
        first = self.floor + 1 if self._lowest else self.next_seq()
        self.hold(first)
        for path in list(self.changes):
            self.release(self.changes.pop(path).seq)
        self._queue.clear()
        return first
