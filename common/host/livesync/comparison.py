"""The sender's passes: everything is listed, a directory at a time, and the mirror says what of it it lacks.

A pass runs at each new stream, after events were lost, and now and then; the root hash of what was listed, found equal
on both sides, is the proof that they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from common.host.livesync import frames
from common.host.livesync.frames import PassBegin, PassDone, PassEnd
from common.host.livesync.outgoing import Outgoing
from common.snapshots.mapped import file_clock_ns

REPAIR_EVERY_S, BLIND_EVERY_S = 600.0, 10.0
"""Between two passes; the second while the kernel does not let every directory be watched."""
PROVE_AFTER_S, PROOFS_MAX = 2.0, 3
"""A pass that found differences is followed by others that may prove that there are none left."""
UNTOLD_MOST_NS = 60_000_000_000
"""For how long what is stored to mapped files before the first barrier may have been untold: the kernel writes a page
back half a minute after it was stored to, when its disk keeps up."""


@dataclass
class Pass:
    number: int
    told_from_ns: int | None
    """Everything was written back before it, after the clock stood there (see `mapped`)."""
    waiting: list[bytes] = field(default_factory=lambda: [b""])
    hasher: Any = field(default_factory=blake3)
    is_ended: bool = False


class Comparison:
    """`now_s` is the sender's clock."""

    def __init__(self, out: Outgoing, every_s: float) -> None:
        self._out, self._every_s = out, every_s
        self._run: Pass | None = None
        self.begun, self.done, self._unproven = 0, 0, 0
        """Numbers of passes."""
        self._next_s = 0.0
        self._told_from_ns = file_clock_ns() - UNTOLD_MOST_NS
        """What is stored to a file is told by its time since then, and was compared as it was then."""
        self._written_back_ns: int | None = None
        """As `told_from_ns`, of the pass that is to come."""
        self.root: str | None = None

    def start(self, now_s: float) -> None:
        """One that is under way begins anew."""
        assert self._out.stream
        self.begun += 1
        self._run = Pass(self.begun, self._written_back_ns)
        self._out.stream.put(PassBegin(self.begun), 0, now_s)
        self._out.news.set()

    def written_back(self, told_from_ns: int) -> None:
        """The next pass compares by content, too, what may have been stored to without a word."""
        self._written_back_ns = told_from_ns

    def put_off(self, until_s: float) -> None:
        self._next_s = until_s

    def break_off(self) -> None:
        self._run = None

    def step(self, now_s: float) -> bool:
        """Puts one directory into the stream; False: there is nothing to do, or no room."""
        stream = self._out.stream
        assert stream
        if self._run is None and now_s >= self._next_s:
            self.start(now_s)
        run = self._run
        if run is None or run.is_ended or not stream.has_room:
            return False
        if run.waiting:
            path = run.waiting.pop()
            doubts = None if run.told_from_ns is None else self._told_from_ns
            below, entries = self._out.compare(path, 0, now_s, is_of_pass=True, doubts_from_ns=doubts)
            run.waiting += reversed(below)
            run.hasher.update(frames.essence(path, entries))
        else:
            stream.put(PassEnd(run.number, run.hasher.digest()), 0, now_s)
            run.is_ended = True
        return True

    def ended(self, done: PassDone, now_s: float, *, is_blind: bool) -> bool:
        """The mirror has compared all of it; False: of a pass that was broken off."""
        run = self._run
        if run is None or done.number != run.number:
            return False
        is_proof = done.root == run.hasher.digest()
        if is_proof:
            self.root = done.root.hex()
        if run.told_from_ns is not None:
            self._told_from_ns = run.told_from_ns
            self._written_back_ns = None if self._written_back_ns == run.told_from_ns else self._written_back_ns
        self._unproven = 0 if is_proof else self._unproven + 1
        self._run, self.done = None, run.number
        is_to_prove = 0 < self._unproven <= PROOFS_MAX
        every_s = PROVE_AFTER_S if is_to_prove else BLIND_EVERY_S if is_blind else REPAIR_EVERY_S
        self._next_s = now_s + min(every_s, self._every_s)
        return True

    @property
    def next_at_s(self) -> float | None:
        return self._next_s if self._run is None else None
