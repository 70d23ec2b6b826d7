"""Walks a workspace and says what is in it; reads no content and follows no link."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from common.errors import SnapshotError
from common.snapshots.limits import MTIME_NS, PART_PREFIX
from common.snapshots.manifest import Kind, printable

SKIPPED_KINDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
ENCODING = sys.getfilesystemencoding()
KIND_BITS = stat.S_IFMT(0o777777)
BLOCK_BYTES = 512
"""The unit of st_blocks."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Stamp = tuple[int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode): equal means untouched, if the ctime was already old when it was taken. The mtime
is the nearest one that a manifest holds."""


class Excludes(NamedTuple):
    """What is left out. `looks_at_files`: may it be anything but a directory?"""

    looks_at_files: bool
    names: Callable[[bytes, bool], bool]
    """names(path, is it a directory?)"""
    reported: tuple[tuple[str, str], ...] = ()
    """Of what was to be left out, what is none: (where it stands, why), in a scan's `skipped`."""


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
    found: Sequence[Found] = ()
    """A directory stands before what it holds."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, kind) of what no snapshot holds: FIFOs, sockets, devices; and what the excludes report."""
    excluded: list[bytes] = field(default_factory=list)


def scan(root: bytes, excludes: Excludes = NOTHING) -> Scan:
    """Everything below root. Raises `SnapshotError` naming what cannot be read: a snapshot never lacks anything
    silently.
    """
    walk = Walk(root, excludes)
    for _ in walk.below(b""):
        continue
    skipped, excluded, names = walk.rest()
    return Scan(root, shared([names]).told(walk.found), sorted(skipped), sorted(excluded))


Names = dict[tuple[int, int], tuple[int, list[bytes]]]
"""Of each file with several, by device and inode: in whose turn it was met first, and its names, that one first."""


class Shared(NamedTuple):
    """Files with several names."""

    others: dict[bytes, tuple[bytes, ...]]
    """Of the name that each was met by first of all."""
    again: set[bytes]
    """Names by which another walk met one of them first."""

    def told(self, found: list[Found]) -> list[Found]:
        """Each file once, with its further names."""
        if not self.others:
            return found
        return [
            each._replace(others=self.others.get(each.path, ())) for each in found if each.path not in self.again
        ]  # fmt: skip


def shared(met: Iterable[Names]) -> Shared:
    """What several walks met, each of parts of one tree: whoever walked what, the same comes of it."""
    by_inode: dict[tuple[int, int], list[tuple[int, list[bytes]]]] = {}
    for names in met:
        for inode, first_and_names in names.items():
            by_inode.setdefault(inode, []).append(first_and_names)
    found = Shared({}, set())
    for mets in by_inode.values():
        (_, (leader, *more)), *later = sorted(mets)
        found.again.update(paths[0] for _, paths in later)
        if others := sorted([*more, *(path for _, paths in later for path in paths)]):
            found.others[leader] = tuple(others)
    return found


Rest = tuple[list[tuple[str, str]], list[bytes], Names]


class Walk:
    """Looks into directories, and keeps what it finds there."""

    def __init__(self, root: bytes, excludes: Excludes) -> None:
        self.found: list[Found] = []
        self.turn = 0
        """Which part of the tree is looked at, where several walk."""
        self._root = root
        self._excludes = excludes
        self._skipped: list[tuple[str, str]] = []
        self._excluded: list[bytes] = []
        self._names: Names = {}

    def below(self, directory: bytes) -> Iterator[bytes]:
        """A directory and all in it: each, when what it holds was added; files before directories."""
        waiting = [directory]
        while waiting:
            directory = waiting.pop()
            waiting += reversed(self.look_into(directory))
            yield directory

    def look_into(self, directory: bytes) -> list[bytes]:
        """Adds it and what it holds, but for the directories in it, which are given back."""
        try:
            fd = os.open(self._root + b"/" + directory, DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if directory == b"":
                raise SnapshotError(f"there is no directory {printable(self._root)}") from None
            return []  # removed while we walked, or a link or file took its place
        except OSError as error:
            raise _unreadable(directory, error) from None
        try:
            self.found.append(_found(directory, "dir", os.fstat(fd), b""))
            if directory == b"":  # of all that walk one tree, one looks into its root
                self._skipped += self._excludes.reported
            return self._take_in(fd, directory)
        finally:
            os.close(fd)

    def rest(self) -> Rest:
        """What it met besides what it found."""
        return self._skipped, self._excluded, self._names

    def _take_in(self, fd: int, directory: bytes) -> list[bytes]:
        """Most names are plain files: they come first."""
        found, dirs = self.found, []
        before = directory + b"/" if directory else b""
        asks = self._excludes.looks_at_files
        for name, status in _statuses(fd, directory):
            path = before + name
            mode = status.st_mode
            kind = mode & KIND_BITS
            if name.startswith(PART_PREFIX):
                continue
            if (asks or kind == stat.S_IFDIR) and self._excludes.names(path, kind == stat.S_IFDIR):
                self._excluded.append(path)
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
                self._skipped.append((printable(path), SKIPPED_KINDS.get(kind, "unknown")))
        return dirs

    def _is_first(self, path: bytes, status: os.stat_result) -> bool:
        """Of the names of one file."""
        _, names = self._names.setdefault((status.st_dev, status.st_ino), (self.turn, []))
        names.append(path)
        return len(names) == 1


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
    mode, marks = stat.S_IMODE(status.st_mode), stamp(status)
    return Found(path, kind, mode, marks[1], status.st_uid, status.st_gid, marks, sparse, target)


def stamp(status: os.stat_result) -> Stamp:
    return (status.st_size, near_ns(status.st_mtime_ns), status.st_ctime_ns, status.st_ino)


def near_ns(mtime_ns: int) -> int:
    """The nearest time that a manifest, or a frame of the live sync, holds."""
    if -MTIME_NS <= mtime_ns <= MTIME_NS:
        return mtime_ns
    return MTIME_NS if mtime_ns > 0 else -MTIME_NS


def data_segments(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges of a file that are not holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # else nothing but a hole is left, or the file was cut off between the two
                yield end, size  # whoever reads it finds out what is the matter
            return
        if start >= size:
            return
        end = min(end, size)
        if start < end:
            yield start, end


def _unreadable(path: bytes, error: OSError) -> SnapshotError:
    return SnapshotError(f"cannot read {printable(path)}: {error.strerror}")
