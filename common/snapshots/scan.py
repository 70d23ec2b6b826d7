"""Walks a workspace and says what is in it; reads no content and follows no link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.errors import SnapshotError
from common.snapshots.manifest import Kind, printable

SKIPPED_KINDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
BLOCK_BYTES = 512
"""The unit of st_blocks."""

Stamp = tuple[int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode): equal means untouched, if the ctime was already old when it was taken."""


@dataclass
class Found:
    """One name as the walk met it. `others` are the further names of a file with several."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    stamp: Stamp
    may_have_holes: bool = False
    target: bytes = b""
    others: list[bytes] = field(default_factory=list)


@dataclass
class Scan:
    found: list[Found] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, kind) of what no snapshot holds: FIFOs, sockets, devices."""


def scan(root: bytes) -> Scan:
    """Everything below root, a directory before its content and its files before its directories.

    Raises `SnapshotError` naming what cannot be read: a snapshot never lacks anything silently.
    """
    result = Scan()
    leaders: dict[tuple[int, int], Found] = {}
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        here = root + b"/" + directory
        try:
            status = os.lstat(here)
            names = _names(here) if stat.S_ISDIR(status.st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            if directory == b"":
                raise SnapshotError(f"there is no directory {printable(root)}") from None
            continue  # removed while we walked: it is in no snapshot taken from now on
        except OSError as error:
            raise SnapshotError(f"cannot read {printable(here)}: {error.strerror}") from None
        if names is None:
            continue  # a link or a file took its place
        result.found.append(_found(directory, status, b""))
        below = [_join(directory, name) for name in names]
        waiting += reversed(list(_take_in(root, below, result, leaders)))
    return result


def _names(directory: bytes) -> list[bytes]:
    with os.scandir(directory) as names:
        return sorted(name.name for name in names)


def _take_in(root: bytes, paths: list[bytes], result: Scan, leaders: dict[tuple[int, int], Found]) -> Iterator[bytes]:
    """Adds everything but the directories, which are given back."""
    for path in paths:
        full = root + b"/" + path
        try:
            status = os.lstat(full)
            target = os.readlink(full) if stat.S_ISLNK(status.st_mode) else b""  # noqa: PTH115 (a Path cannot hold bytes)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SnapshotError(f"cannot read {printable(full)}: {error.strerror}") from None
        inode = (status.st_dev, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            yield path
        elif kind := SKIPPED_KINDS.get(stat.S_IFMT(status.st_mode)):
            result.skipped.append((printable(path), kind))
        elif stat.S_ISREG(status.st_mode) and inode in leaders:
            leaders[inode].others.append(path)
        else:
            result.found.append(_found(path, status, target))
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                leaders[inode] = result.found[-1]


def _found(path: bytes, status: os.stat_result, target: bytes) -> Found:
    kind: Kind = "symlink" if target else "dir" if stat.S_ISDIR(status.st_mode) else "file"
    sparse = kind == "file" and status.st_blocks * BLOCK_BYTES < status.st_size
    mode = stat.S_IMODE(status.st_mode)
    return Found(path, kind, mode, status.st_mtime_ns, stamp(status), sparse, target)


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
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
