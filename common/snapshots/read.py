"""Reads files in a worker. One that changes while it is read is read again, and in the end marked torn."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from common.errors import SnapshotError
from common.snapshots.chunk import (
    SMALL_FILE_BYTES,
    SOLID_CHUNK_BYTES,
    SUM_BYTES,
    WINDOW_BYTES,
    ChunkWriter,
    bytes_sum,
    content_sum,
    cut,
    grain_of,
)
from common.snapshots.limits import MAX_XATTR_BYTES, MAX_XATTRS
from common.snapshots.manifest import printable
from common.snapshots.scan import Found, Stamp, data_segments, stamp

READ_ATTEMPTS = 3
TELLS_AT_BYTES = 64 << 20
"""So often a worker says that it still reads: one that moves is read in one go, however large, and nothing else is said
of it when its chunks are all known."""
READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
"""The name was removed, or something that is no file took its place."""

SUM_OF_NOTHING = bytes_sum(b"")
Place = tuple[int, str, int, int]
"""(offset in the file, chunk, offset in the chunk, length)"""
Xattrs = tuple[tuple[str, bytes], ...]


class Status(NamedTuple):
    """What a reading found otherwise than the walk had."""

    mode: int
    mtime_ns: int
    size: int
    stamp: Stamp | None
    """None = not to be remembered: the file was moving."""
    torn: bool


class Read(NamedTuple):
    """One file that was read; it goes from the worker to the engine."""

    number: int
    """The file's place in the walk."""
    sum: str
    places: Sequence[Place] | None
    """None = those of another small file of that sum, in this snapshot or the one before."""
    xattrs: Xattrs = ()
    status: Status | None = None
    gone: bool = False
    name: bytes = b""
    """Of a file with several: the one that this is about, which by now is a file by itself. Empty = all that it has."""


new_read = partial(tuple.__new__, Read)
"""Of a tuple with all fields: a third of what `Read(...)` costs."""


class FileReader:
    """Turns files into places in chunks. `found` is the walk, shared with the engine; numbers point into it."""

    def __init__(
        self, root: bytes, found: Sequence[Found], chunks: ChunkWriter, still_reads: Callable[[], None] = lambda: None
    ) -> None:
        """`still_reads` is called for every TELLS_AT_BYTES of large files."""
        self._root = root
        self._found = found
        self._chunks = chunks
        self._still_reads = still_reads
        self._untold = 0
        self._window = memoryview(bytearray(WINDOW_BYTES))

    def small(self, numbers: Iterable[int]) -> list[Read]:
        """Small files, put together in solid chunks. Raises `SnapshotError` when one cannot be read."""
        solid = _Solid(self._chunks)
        for number in numbers:
            if not self._quickly(number, solid):
                self._thoroughly(number, solid)
        return solid.close()

    def piece(self, number: int, start: int, end: int) -> Read:
        """A range of a large file; `status` is set when the file is no longer as the walk saw it."""
        fd = self._open(self._found[number])
        if fd is None:
            return Read(number, "", (), gone=True)
        try:
            places = self._cut(fd, [(start, end)], self._found[number])
            after = os.fstat(fd)
            settled = stamp(after) == self._found[number].stamp
            return Read(number, "", places, read_xattrs(fd) if start == 0 else (), None if settled else _status(after))
        finally:
            os.close(fd)

    def whole(self, number: int) -> list[Read]:
        """A file that moved, of whatever size by now: up to READ_ATTEMPTS readings until it rests."""
        fd = self._open(self._found[number])
        if fd is None:
            return self._name_by_name(number)
        try:
            return [self._until_it_rests(number, fd)]
        finally:
            os.close(fd)

    def _quickly(self, number: int, solid: _Solid) -> bool:
        """The usual case costs one reading and one look: the file is still as the walk saw it. False = it is not."""
        found = self._found[number]
        size = found.stamp[0]
        if found.may_have_holes:
            return False
        try:
            fd = os.open(self._root + b"/" + found.path, READ_ONLY)
        except OSError:
            return False
        try:
            content = os.pread(fd, size, 0)
            if len(content) != size or stamp(os.fstat(fd)) != found.stamp:
                return False
            xattrs = read_xattrs(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
        solid.take(number, content, xattrs)
        return True

    def _thoroughly(self, number: int, solid: _Solid) -> None:
        """One with holes, or one that was touched since the walk."""
        found = self._found[number]
        fd = self._open(found)
        if fd is None:
            solid.done += self._name_by_name(number)
            return
        try:
            self._with_holes(number, fd, solid)
        finally:
            os.close(fd)

    def _with_holes(self, number: int, fd: int, solid: _Solid) -> None:
        found = self._found[number]
        size = found.stamp[0]
        segments = list(data_segments(fd, size)) if found.may_have_holes else [(0, size)] if size else []
        pieces = [(start, _pread(fd, end - start, start, found)) for start, end in segments]
        if stamp(os.fstat(fd)) != found.stamp or any(
            len(piece) != end - start for (start, piece), (_, end) in zip(pieces, segments, strict=True)
        ):
            solid.done.append(self._until_it_rests(number, fd))
            return
        solid.add(number, bytes_sum(b"".join(piece for _, piece in pieces)), pieces, read_xattrs(fd))

    def _name_by_name(self, number: int) -> list[Read]:
        """Of what none of its names leads to any more: what each of them leads to by now, if to anything."""
        found = self._found[number]
        reads = []
        for name in (found.path, *found.others):
            fd = self._open_name(name)
            if fd is None:
                reads.append(Read(number, "", (), gone=True, name=name))
                continue
            try:
                reads.append(self._until_it_rests(number, fd)._replace(name=name))
            finally:
                os.close(fd)
        return reads

    def _until_it_rests(self, number: int, fd: int) -> Read:
        """A file that only grew is whole as it was: its first bytes, read twice, are the same."""
        found = self._found[number]
        first: Read | None = None
        for _ in range(READ_ATTEMPTS):
            before = os.fstat(fd)
            size = before.st_size if first is None or first.status is None else first.status.size
            segments = [(s, min(e, size)) for s, e in data_segments(fd, before.st_size) if s < size]
            content = blake3()
            places = self._cut(fd, segments, found, content)
            name = content_sum(place[1] for place in places)
            if size <= SMALL_FILE_BYTES:
                name = content.hexdigest(length=SUM_BYTES)
            read = Read(number, name, places, read_xattrs(fd), _status(before))
            after = os.fstat(fd)
            if stamp(after) == stamp(before) and size == before.st_size:
                return read
            if first and first.status and first.sum == read.sum and after.st_size >= size:
                return first._replace(status=first.status._replace(stamp=None))
            first = read._replace(status=_status(before)) if after.st_size >= before.st_size else None
        end = max((at + length for at, _, _, length in places), default=0)
        torn = _status(before)._replace(stamp=None, torn=True, size=end)
        return read._replace(status=torn)

    def _cut(
        self, fd: int, segments: Iterable[tuple[int, int]], found: Found, content: blake3 | None = None
    ) -> list[Place]:
        """Chunks of the ranges; `content` hashes what was read."""
        places: list[Place] = []
        try:
            for start, end in segments:
                for at, piece in cut(fd, start, end, self._window, grain_of(found.stamp[0])):
                    places.append((at, self._chunks.add(piece), 0, len(piece)))
                    self._tell(len(piece))
                    if content:
                        content.update(piece)
        except OSError as error:
            raise _unreadable(found.path, error) from None
        return places

    def _tell(self, read_bytes: int) -> None:
        self._untold += read_bytes
        if self._untold >= TELLS_AT_BYTES:
            self._untold = 0
            self._still_reads()

    def _open(self, found: Found) -> int | None:
        """What bears its name. One of several may be removed, or lead to another file, while the others stay: then it
        is the file that the walk met, as long as one of them leads there."""
        for name in (found.path, *found.others):
            fd = self._open_name(name)
            if fd is None:
                continue
            if not found.others or os.fstat(fd).st_ino == found.stamp[3]:
                return fd
            os.close(fd)
        return None

    def _open_name(self, name: bytes) -> int | None:
        try:
            fd = os.open(self._root + b"/" + name, READ_ONLY)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise _unreadable(name, error) from None
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None


class _Solid:
    """Small files on their way into a chunk together."""

    def __init__(self, chunks: ChunkWriter) -> None:
        self.done: list[Read] = []
        self._chunks = chunks
        self._content = bytearray()
        self._members: list[tuple[int, str, list[tuple[int, int, int]], Xattrs]] = []

    def take(self, number: int, content: bytes, xattrs: Xattrs) -> None:
        """A file without holes; one whose content is there already adds nothing."""
        if not content:
            self.done.append(Read(number, SUM_OF_NOTHING, (), xattrs))
            return
        sum = bytes_sum(content)
        if self._chunks.has_file(sum):
            self.done.append(Read(number, sum, None, xattrs))
        else:
            self.add(number, sum, [(0, content)], xattrs)

    def add(self, number: int, sum: str, pieces: list[tuple[int, bytes]], xattrs: Xattrs) -> None:
        places = []
        for at, piece in pieces:
            places.append((at, len(self._content), len(piece)))
            self._content += piece
        self._members.append((number, sum, places, xattrs))
        if len(self._content) >= SOLID_CHUNK_BYTES:
            self._flush()

    def close(self) -> list[Read]:
        self._flush()
        return self.done

    def _flush(self) -> None:
        name = self._chunks.add(self._content) if self._content else ""
        for number, sum, places, xattrs in self._members:
            mine = [(at, name, start, length) for at, start, length in places]
            self.done.append(Read(number, sum, mine, xattrs))
        self._content, self._members = bytearray(), []


def read_xattrs(path: bytes | int) -> Xattrs:
    """What we may read of them; a file system without any has none."""
    try:
        names = os.listxattr(path) if isinstance(path, int) else os.listxattr(path, follow_symlinks=False)
        if not names:
            return ()
        read: Callable[[str], bytes] = (
            (lambda name: os.getxattr(path, name))
            if isinstance(path, int)
            else (lambda name: os.getxattr(path, name, follow_symlinks=False))
        )
        found = tuple((name, read(name)) for name in sorted(names) if name.isprintable())
    except OSError:
        return ()
    return tuple((name, value) for name, value in found if len(value) <= MAX_XATTR_BYTES)[:MAX_XATTRS]


def _status(now: os.stat_result) -> Status:
    marks = stamp(now)
    return Status(stat.S_IMODE(now.st_mode), marks[1], marks[0], marks, torn=False)


def _pread(fd: int, length: int, at: int, found: Found) -> bytes:
    try:
        return os.pread(fd, length, at)
    except OSError as error:
        raise _unreadable(found.path, error) from None


def _unreadable(path: bytes, error: OSError) -> SnapshotError:
    return SnapshotError(f"cannot read {printable(path)}: {error.strerror}")


assert SMALL_FILE_BYTES < SOLID_CHUNK_BYTES
