"""When hosts were heard: kept in a process's memory and written down together (`records.heard_of` reads it)."""

from __future__ import annotations

from datetime import datetime

from common.errors import Exists, Missing, Stale, StoreUnavailable
from common.ports import App, Doc, expiring
from common.records import newest_of

WRITE_ATTEMPTS = 2
"""Of one flush: the second one has read what the first one met."""


def note(app: App, label: str, now: datetime, *, next_in_s: float) -> None:
    """It was heard, and said nothing new. Kept in memory, or written down with all the others.

    A write that fails loses nothing: the times stay in memory, and no token says that they were written.
    """
    heard = app.heard
    heard.note(label, now, next_in_s=next_in_s)
    if not heard.is_flush_due(now):
        return
    try:
        _flush(app, heard.begin_flush(now), now)
    except (Stale, Exists, Missing, StoreUnavailable) as error:
        heard.flush_failed()
        app.log("flush_failed", process=heard.id, error=str(error))


def _flush(app: App, content: dict[str, datetime], now: datetime) -> None:
    """Guarded by what this process wrote last: a write that comes late does not take newer times back."""
    heard = app.heard
    before: Doc | None = heard.written
    for attempt in range(1, WRITE_ATTEMPTS + 1):
        data = expiring("seen", {"at": now, "hosts": content}, now)
        try:
            written = app.store.cas(before, data) if before else app.store.create("seen", heard.id, data)
        except (Stale, Exists, Missing):
            if attempt == WRITE_ATTEMPTS:
                raise
            before = app.store.get("seen", heard.id)  # an answer was lost, or another thread came first
            content = newest_of(content, before.data["hosts"] if before else {})
        else:
            heard.flushed(content, written)
            return
