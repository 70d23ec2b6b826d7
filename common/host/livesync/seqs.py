"""Numbers of changes that are never given twice on this machine, over restarts too: kept before they are used."""

from __future__ import annotations

from pathlib import Path

from common.host.atomic import write_atomically

RESERVED = 1 << 20
"""At once: one write to the disk for so many."""
FILE = "livesync-seq"


class Seqs:
    def __init__(self, home: Path) -> None:
        self._file = home / FILE
        self.last = self._read()
        """Given before this start, or kept for that."""
        self._reserved = self.last
        self.reserve(self.last)

    def reserve(self, seq: int) -> None:
        """Call it often: there are always enough numbers beyond the newest one."""
        if seq >= self._reserved - RESERVED // 2:
            self._reserved = seq + RESERVED
            write_atomically(self._file, str(self._reserved).encode())

    def _read(self) -> int:
        try:
            return int(self._file.read_bytes())
        except FileNotFoundError:
            return 0
