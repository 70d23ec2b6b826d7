"""Which hosts were heard, and when: kept in a process's memory and written down together.

A running host says the same once a minute. Each such report in a document of its own would be half of what a host
costs, so a process of the heartbeat function keeps the times in memory and writes all of them as ONE document,
`seen/<process>`, at most every `flush_s`. What a host says that is new goes into `hosts/<label>` at once, as ever.
A reader's view is the newest of both.

How old may the view of a living host be? Its last report is up to one interval old (60 s). A report that was only
kept in memory is written by the next one that comes `flush_s` (20 s) later; who sees too little company due by then
writes at once: 80 s. A process that dies takes what it had not written with it, one report of a host: its next one
comes to another process, which writes at its first: 140 s, within `silent_after_s` (180 s). A report that was not
answered is repeated after 5 s.
Memories that die again and again lose nothing for longer: the host's signed token says when it was last written down
(`Recorded.durable_at`, never later than the truth), and once that is `durable_s` (135 s) ago a report is written into
the host's own document. That also guards the fence: whoever is heard after it seemed silent writes its own document,
on whose unchanged version the fencing commit rests. Nothing else that is done about a silent host rests on silence
alone (rule R4): it is fenced and held, and never destroyed before a newer snapshot covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

FLUSH_PART = 1 / 9
"""Of `silent_after_s`: between two writes of one process's memory. Production: 20 s."""
DURABLE_PART = 3 / 4
"""Of `silent_after_s`: a host that was not written down for so long is written by itself. Production: 135 s; a token is
one report behind the process that gave it, so 120 s are usual where two processes take turns."""
REFRESH_TIMES = 5
"""`silent_after_s` so many times: a host's own document is never older. Production: 15 minutes."""
UNWRITTEN_TIMES = REFRESH_TIMES + 1
"""`silent_after_s` so many times: whose own document is older has not been heard, whatever a process's memory holds."""
COMPANY_MIN = 3
"""A time waits in memory only while so many other hosts are due before the next write; fewer might all stay away."""
LABELS_MAX = 5_000
"""In one memory, and in its document of some 100 bytes each; whom it has no room for is written by itself."""


@dataclass(frozen=True)
class Recorded:
    """What a host's token says of its last report: signed by us, so that the next one that says the same needs no look
    at what was recorded."""

    key: str | None
    """Of the instance that it serves."""
    beat: int
    """Number of the report that was answered: only the very next one is in order."""
    facts: str
    """Digest of what it said (`host.facts_of`)."""
    written_at: datetime
    """Of `hosts/<label>`."""
    durable_at: datetime
    """It was heard then, which is written down in its own document or in a process's. Never later than the truth."""


@dataclass
class Heard:
    """The memory of one process. Threads share it: each method reads or writes whole entries, in any order."""

    id: str
    """Of the process; the document's."""
    silent_after_s: float
    company_min: int = COMPANY_MIN
    written: Any = None
    """The document as this process last wrote it: it guards the next write, so that a late one undoes nothing."""
    _at: dict[str, datetime] = field(default_factory=dict)
    _durable_at: dict[str, datetime] = field(default_factory=dict)
    _due_at: dict[str, datetime] = field(default_factory=dict)
    _next_flush_at: datetime | None = None

    def has_room(self, label: str) -> bool:
        return label in self._at or len(self._at) < LABELS_MAX

    def note(self, label: str, now: datetime, *, next_in_s: float) -> None:
        self._at[label] = max(now, self._at.get(label, now))
        self._due_at[label] = now + timedelta(seconds=next_in_s)

    def is_flush_due(self, now: datetime) -> bool:
        """Is it time, or will nobody come in time to write what waits?"""
        if self._next_flush_at is None or now >= self._next_flush_at:
            return True
        until = now + self._part(FLUSH_PART)
        company = (due for due in list(self._due_at.values()) if now < due <= until)
        return len(list(islice(company, self.company_min))) < self.company_min

    def begin_flush(self, now: datetime) -> dict[str, datetime]:
        """What to write: everybody whose own document may be older. Nobody else begins one meanwhile."""
        self._next_flush_at = now + self._part(FLUSH_PART)
        since = now - self._part(REFRESH_TIMES)
        content = {label: at for label, at in dict(self._at).items() if at >= since}
        for memory in (self._at, self._durable_at, self._due_at):
            for label in memory.keys() - content.keys():
                memory.pop(label, None)
        return content

    def flushed(self, content: Mapping[str, datetime], written: Any) -> None:
        self.written = written
        self._durable_at.update(content)

    def flush_failed(self) -> None:
        """The next report tries again."""
        self._next_flush_at = None

    def durable_at(self, label: str) -> datetime | None:
        return self._durable_at.get(label)

    def _part(self, times: float) -> timedelta:
        return timedelta(seconds=self.silent_after_s * times)
