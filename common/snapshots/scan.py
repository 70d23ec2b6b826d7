"""Walks a workspace and says what is in it; reads no content and follows no link."""

from __future__ import annotations

import marshal
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from common.errors import SnapshotError
from common.snapshots.limits import PART_PREFIX
from common.snapshots.manifest import Kind, printable

SKIPPED_KINDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
ENCODING = sys.getfilesystemencoding()
KIND_BITS = stat.S_IFMT(0o777777)
BATCH = 5000
BLOCK_BYTES = 512
"""The unit of st_blocks."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Stamp = tuple[int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode): equal means untouched, if the ctime was already old when it was taken."""


class Excludes(NamedTuple):
    """What is left out. `looks_at_files`: may it be anything but a directory?"""

    looks_at_files: bool
    names: Callable[[bytes, bool], bool]
    """names(path, is it a directory?)"""


NOTHING = Excludes(looks_at_files=False, names=lambda _path, _is_dir: False)


class Found(NamedTuple):
    """One name as the walk met it. `others` are the further names of a file with several."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    uid: int
    gid: int
    stamp: Stamp
    may_have_holes: bool = False
    target: bytes = b""
    others: Sequence[bytes] = ()


new_found = partial(tuple.__new__, Found)
"""Of a tuple with all fields; `Found(...)` takes three times as long, and there may be a million."""


@dataclass
class Scan:
    root: bytes = b""
    found: list[Found] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, kind) of what no snapshot holds: FIFOs, sockets, devices."""
    excluded: list[bytes] = field(default_factory=list)


def scan(root: bytes, excludes: Excludes = NOTHING) -> Scan:
    """Everything below root, a directory before its content and its files before its directories.

    Raises `SnapshotError` naming what cannot be read: a snapshot never lacks anything silently.
    """
    walk = _Walk(root, excludes)
    for _ in walk.directories():
        continue
    return walk.end(walk.result)


class Apart:
    """A walk by a process of its own, which leaves what it finds in a file in memory: so it waits for nobody, and holds
    only a batch of it at a time."""

    def __init__(self, root: bytes, excludes: Excludes) -> None:
        self._walk = _Walk(root, excludes)
        self._file = os.memfd_create("dumont-walk")

    def go(self) -> Any:
        """In that process: what is to be given to `result`."""
        found = self._walk.result.found
        with open(self._file, "wb", closefd=False) as file:
            for _ in self._walk.directories():
                if len(found) >= BATCH:
                    self._leave(file)
            self._leave(file)
        return self._walk.rest()

    def result(self, rest: Any) -> Scan:
        """In the engine."""
        found: list[Found] = []
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            while size := int.from_bytes(file.read(8), "little"):
                found += map(new_found, marshal.loads(file.read(size)))
        os.ftruncate(self._file, 0)
        self._walk.take_over(found, rest)
        return self._walk.end(self._walk.result)

    def close(self) -> None:
        os.close(self._file)

    def _leave(self, file: BinaryIO) -> None:
        """By `marshal`, which costs a tenth of pickling: it is for the other half of the same program alone."""
        found = self._walk.result.found
        content = marshal.dumps(list(map(tuple, found)))
        file.write(len(content).to_bytes(8, "little") + content)
        self._walk.left += len(found)
        found.clear()


class _Walk:
    def __init__(self, root: bytes, excludes: Excludes) -> None:
        self.result = Scan(root)
        self._excludes = excludes
        self._leaders: dict[tuple[int, int], tuple[int, list[bytes]]] = {}
        """Of each file with several names: its place among those found, and its further names."""
        self.left = 0
        """Of those found, how many were taken away."""

    def directories(self) -> Iterator[bytes]:
        """Each, when what it holds was added."""
        waiting = [b""]
        while waiting:
            directory = waiting.pop()
            try:
                fd = os.open(self.result.root + b"/" + directory, DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                if directory == b"":
                    raise SnapshotError(f"there is no directory {printable(self.result.root)}") from None
                continue  # removed while we walked, or a link or file took its place
            except OSError as error:
                raise _unreadable(directory, error) from None
            try:
                self.result.found.append(_found(directory, "dir", os.fstat(fd), b""))
                waiting += reversed(self.take_in(fd, directory))
            finally:
                os.close(fd)
            yield directory

    def take_in(self, fd: int, directory: bytes) -> list[bytes]:
        """Adds everything but the directories, which are given back. Most names are plain files: they come first."""
        found, dirs = self.result.found, []
        before = directory + b"/" if directory else b""
        asks = self._excludes.looks_at_files
        for name, status in _statuses(fd, directory):
            path = before + name
            mode = status.st_mode
            kind = mode & KIND_BITS
            if name.startswith(PART_PREFIX):
                continue
            if (asks or kind == stat.S_IFDIR) and self._excludes.names(path, kind == stat.S_IFDIR):
                self.result.excluded.append(path)
            elif kind == stat.S_IFREG:
                if status.st_nlink == 1 or self._is_first(path, status):
                    marks = stamp(status)
                    has_holes = status.st_blocks * BLOCK_BYTES < marks[0]
                    owner = (status.st_uid, status.st_gid)
                    found.append(new_found((path, "file", mode & 0o7777, marks[1], *owner, marks, has_holes, b"", ())))
            elif kind == stat.S_IFDIR:
                dirs.append(path)
            elif kind == stat.S_IFLNK:
                if target := _target(fd, name):
                    found.append(_found(path, "symlink", status, target))
            else:
                self.result.skipped.append((printable(path), SKIPPED_KINDS.get(kind, "unknown")))
        return dirs

    def _is_first(self, path: bytes, status: os.stat_result) -> bool:
        """Of the names of one file."""
        inode = (status.st_dev, status.st_ino)
        if inode in self._leaders:
            self._leaders[inode][1].append(path)
            return False
        self._leaders[inode] = (self.left + len(self.result.found), [])
        return True

    def rest(self) -> Any:
        """What there is besides those found."""
        return self.result.skipped, self.result.excluded, self._leaders

    def take_over(self, found: list[Found], rest: Any) -> None:
        self.result.found = found
        self.result.skipped, self.result.excluded, self._leaders = rest

    def end(self, result: Scan) -> Scan:
        for place, others in self._leaders.values():
            if others:
                result.found[place] = result.found[place]._replace(others=tuple(others))
        return result


def _statuses(fd: int, directory: bytes) -> list[tuple[bytes, os.stat_result]]:
    """Name and status of everything in a directory, by name; what is removed meanwhile is left out."""
    found = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    found.append((entry.name.encode(ENCODING, "surrogateescape"), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    except OSError as error:
        raise _unreadable(directory, error) from None
    found.sort()  # names differ: nothing else is compared
    return found


def _target(fd: int, name: bytes) -> bytes:
    """What a symlink says; nothing when it was removed, or is none any more."""
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError:
        return b""


def _found(path: bytes, kind: Kind, status: os.stat_result, target: bytes) -> Found:
    sparse = kind == "file" and status.st_blocks * BLOCK_BYTES < status.st_size
    mode = stat.S_IMODE(status.st_mode)
    return Found(path, kind, mode, status.st_mtime_ns, status.st_uid, status.st_gid, stamp(status), sparse, target)


def stamp(status: os.stat_result) -> Stamp:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def data_segments(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges of a file that are not holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        if start >= size:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _unreadable(path: bytes, error: OSError) -> SnapshotError:
    return SnapshotError(f"cannot read {printable(path)}: {error.strerror}")
