"""Reads files into chunks: small ones together in path order, large ones in fixed pieces, holes left out.

A file that changes while it is read is read again, and in the end marked torn: a snapshot says what it is unsure of.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field, replace
from itertools import pairwise

from blake3 import blake3

from common.errors import SnapshotError
from common.snapshots.hostile import MAX_CHUNK_BYTES
from common.snapshots.manifest import Entry, Extent, printable
from common.snapshots.pack import PackWriter
from common.snapshots.scan import Found, Stamp, data_segments, stamp

SMALL_FILE_BYTES = 256 << 10
SOLID_CHUNK_BYTES = 1 << 20
"""Small files are put together until a chunk has grown so far."""
READ_ATTEMPTS = 3
READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
"""The name was removed, or something that is no file took its place."""
SUM_BYTES = 16

Piece = tuple[int, bytes]
"""(offset in the file, the bytes there)"""


@dataclass
class FileReader:
    """Turns files into entries whose bytes are in `writer`. Entries of small files are complete only after `flush`."""

    root: bytes
    writer: PackWriter
    entries: dict[bytes, Entry] = field(default_factory=dict)
    stamps: dict[bytes, Stamp] = field(default_factory=dict)
    """Of the files that were read undisturbed."""
    _solid: bytearray = field(default_factory=bytearray)
    _members: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    """(path, offset in the file, start in the solid chunk, length)"""

    def read(self, found: Found) -> bool:
        """Adds the file's entry; False = it is gone. Raises `SnapshotError` when it cannot be read."""
        for attempt in range(1, READ_ATTEMPTS + 1):
            fd = self._open(found)
            if fd is None:
                return False
            try:
                settled = self._read_once(found, fd)
            finally:
                os.close(fd)
            if settled:
                return True
            if attempt < READ_ATTEMPTS:
                self._forget(found.path)
        self.entries[found.path] = replace(self.entries[found.path], torn=True)
        self.stamps.pop(found.path)
        return True

    def flush(self) -> None:
        """Closes the solid chunk that small files are collected in."""
        if not self._members:
            return
        name = self.writer.add(bytes(self._solid))
        for path, at, start, length in self._members:
            entry = self.entries[path]
            self.entries[path] = replace(entry, extents=(*entry.extents, Extent(at, name, start, length)))
        self._solid.clear()
        self._members.clear()

    def _open(self, found: Found) -> int | None:
        """By any of its names: one of several may be removed while the others stay."""
        for path in (found.path, *found.others):
            try:
                fd = os.open(self.root + b"/" + path, READ_ONLY)
            except OSError as error:
                if error.errno in GONE:
                    continue
                raise SnapshotError(f"cannot read {printable(path)}: {error.strerror}") from None
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
        return None

    def _read_once(self, found: Found, fd: int) -> bool:
        """One reading; was the file left alone meanwhile?"""
        before = os.fstat(fd)
        size = before.st_size
        segments = list(data_segments(fd, size)) if found.may_have_holes else [(0, size)]
        content = blake3()
        extents: list[Extent] = []
        small: list[Piece] = []
        end = 0
        for at, stop in _pieces(segments):
            plain = _pread(fd, stop - at, at, found)
            if not plain:
                break
            content.update(plain)
            end = at + len(plain)
            if size <= SMALL_FILE_BYTES:
                small.append((at, plain))
            else:
                extents.append(Extent(at, self.writer.add(plain), 0, len(plain)))
            if end < stop:
                break
        whole = end == (segments[-1][1] if segments else 0)
        entry = Entry(
            found.path,
            "file",
            stat.S_IMODE(before.st_mode),
            before.st_mtime_ns,
            size if whole else end,
            content.hexdigest(length=SUM_BYTES),
            tuple(extents),
        )
        self._collect(entry, small)
        self.stamps[found.path] = stamp(before)
        return whole and stamp(os.fstat(fd)) == stamp(before)

    def _collect(self, entry: Entry, pieces: list[Piece]) -> None:
        self.entries[entry.path] = entry
        for at, plain in pieces:
            self._members.append((entry.path, at, len(self._solid), len(plain)))
            self._solid += plain
        if len(self._solid) >= SOLID_CHUNK_BYTES:
            self.flush()

    def _forget(self, path: bytes) -> None:
        """The bytes of a disturbed reading may stay in the solid chunk; nothing refers to them."""
        self._members = [member for member in self._members if member[0] != path]
        del self.entries[path]


def _pread(fd: int, length: int, at: int, found: Found) -> bytes:
    try:
        return os.pread(fd, length, at)
    except OSError as error:
        raise SnapshotError(f"cannot read {printable(found.path)}: {error.strerror}") from None


def _pieces(segments: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut at fixed offsets of the file, so that an edit in place changes one chunk."""
    pieces = []
    for start, end in segments:
        first_cut = start - start % MAX_CHUNK_BYTES + MAX_CHUNK_BYTES
        cuts = [start, *range(first_cut, end, MAX_CHUNK_BYTES), end]
        pieces += [(at, stop) for at, stop in pairwise(cuts) if at < stop]
    return pieces
