"""Walks a workspace and says what is in it; reads no content and follows no link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from common.errors import SnapshotError
from common.snapshots.limits import PART_PREFIX
from common.snapshots.manifest import Kind, printable

SKIPPED_KINDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
BLOCK_BYTES = 512
"""The unit of st_blocks."""
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Stamp = tuple[int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode): equal means untouched, if the ctime was already old when it was taken."""
Excludes = Callable[[bytes, bool], bool]
"""excludes(path, is it a directory?)"""


@dataclass(slots=True)
class Found:
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
    others: list[bytes] = field(default_factory=list)


@dataclass
class Scan:
    root: bytes = b""
    found: list[Found] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, kind) of what no snapshot holds: FIFOs, sockets, devices."""
    excluded: list[bytes] = field(default_factory=list)


def scan(root: bytes, excludes: Excludes = lambda _path, _is_dir: False) -> Scan:
    """Everything below root, a directory before its content and its files before its directories.

    Raises `SnapshotError` naming what cannot be read: a snapshot never lacks anything silently.
    """
    result = Scan(root)
    leaders: dict[tuple[int, int], Found] = {}
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        try:
            fd = os.open(root + b"/" + directory, DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if directory == b"":
                raise SnapshotError(f"there is no directory {printable(root)}") from None
            continue  # removed while we walked, or a link or file took its place
        except OSError as error:
            raise _unreadable(directory, error) from None
        try:
            result.found.append(_found(directory, "dir", os.fstat(fd), b""))
            waiting += reversed(list(_take_in(fd, directory, result, leaders, excludes)))
        finally:
            os.close(fd)
    return result


def _take_in(
    fd: int, directory: bytes, result: Scan, leaders: dict[tuple[int, int], Found], excludes: Excludes
) -> Iterator[bytes]:
    """Adds everything but the directories, which are given back."""
    before = directory + b"/" if directory else b""
    for name, status in _statuses(fd, directory):
        path, mode = before + name, status.st_mode
        is_dir = stat.S_ISDIR(mode)
        if name.startswith(PART_PREFIX):
            continue
        if excludes(path, is_dir):
            result.excluded.append(path)
        elif is_dir:
            yield path
        elif stat.S_ISREG(mode):
            leader = leaders.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
            if leader:
                leader.others.append(path)
                continue
            result.found.append(_found(path, "file", status, b""))
            if status.st_nlink > 1:
                leaders[status.st_dev, status.st_ino] = result.found[-1]
        elif stat.S_ISLNK(mode):
            target = _target(fd, name)
            if target:
                result.found.append(_found(path, "symlink", status, target))
        else:
            result.skipped.append((printable(path), SKIPPED_KINDS.get(stat.S_IFMT(mode), "unknown")))


def _statuses(fd: int, directory: bytes) -> list[tuple[bytes, os.stat_result]]:
    """Name and status of everything in a directory, by name; what is removed meanwhile is left out."""
    found = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    found.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    except OSError as error:
        raise _unreadable(directory, error) from None
    found.sort(key=lambda each: each[0])
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
