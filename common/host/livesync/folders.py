"""The times of directories: each name that is put into one changes it, on both sides. Pure.

They are sent when a directory has been left alone for a while, so that ten thousand new files cost its time once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

QUIET_S = 1.0
STALE_MAX = 4096
"""More are left to the next pass."""


class FolderTimes:
    def __init__(self) -> None:
        self._stale: OrderedDict[bytes, float] = OrderedDict()

    def changed(self, path: bytes, now_s: float) -> None:
        """Something bears this name now, or does no more."""
        if path:
            folder = path.rpartition(b"/")[0]
            self._stale[folder] = now_s
            self._stale.move_to_end(folder)
            if len(self._stale) > STALE_MAX:
                self._stale.popitem(last=False)

    def due(self, now_s: float) -> Iterator[bytes]:
        while self._stale and next(iter(self._stale.values())) <= now_s - QUIET_S:
            yield self._stale.popitem(last=False)[0]

    @property
    def next_at_s(self) -> float | None:
        return next(iter(self._stale.values())) + QUIET_S if self._stale else None
