"""What a name is, on either side: its kind, its dress, what it points to. Nothing is followed."""

from __future__ import annotations

import os
import stat

from common.host.livesync.frames import Dress, Entry
from common.snapshots.scan import near_ns

KINDS = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l"}
"""Of what is mirrored; sockets, pipes and devices are not."""


def entry_of(name: bytes, kind: bytes, status: os.stat_result, target: bytes) -> Entry:
    size = status.st_size if kind == b"f" else 0
    return Entry(name, kind, dress_of(status), size, target)


def dress_of(status: os.stat_result) -> Dress:
    """With a time that every frame holds."""
    return Dress(stat.S_IMODE(status.st_mode), near_ns(status.st_mtime_ns), status.st_uid, status.st_gid)


def names(folder: int) -> list[bytes]:
    """Of an open directory, in no order."""
    with os.scandir(folder) as entries:
        return [os.fsencode(entry.name) for entry in entries]


def is_same(found: Entry, entry: Entry) -> bool:
    """Of one kind, and a file's content as far as size and time can tell."""
    if found.kind != entry.kind or found.kind == b"d":
        return found.kind == entry.kind
    if found.kind == b"l":
        return found.target == entry.target
    return (found.size, found.dress.mtime_ns) == (entry.size, entry.dress.mtime_ns)
