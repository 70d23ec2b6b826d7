"""Changes a directory tree without ever leaving it: each step of a path is opened by itself and follows no link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from common.snapshots.manifest import Entry, Extent
from common.snapshots.scan import data_segments

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OWNER_MAY_ALL = 0o700

ReadExtent = Callable[[Extent], bytes | memoryview]


class Tree:
    """A workspace below `root_fd`. Paths are bytes relative to it; `b""` is the root."""

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd

    @contextmanager
    def folder(self, path: bytes) -> Iterator[int]:
        """A descriptor of the directory; raises OSError when any step is missing, no directory, or a link."""
        fd = os.dup(self._root)
        try:
            for name in path.split(b"/") if path else ():
                below = os.open(name, DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def listing(self) -> dict[bytes, os.stat_result]:
        """Everything that is there, a directory before its content."""
        found: dict[bytes, os.stat_result] = {}
        waiting = [b""]
        while waiting:
            directory = waiting.pop()
            with self.folder(directory) as fd, os.scandir(fd) as names:
                for name in (os.fsencode(each.name) for each in names):
                    path = directory + b"/" + name if directory else name
                    found[path] = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISDIR(found[path].st_mode):
                        waiting.append(path)
        return found

    def unlock(self, path: bytes) -> None:
        """Lets the owner change what the directory holds."""
        with self.folder(path) as fd:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if mode & OWNER_MAY_ALL != OWNER_MAY_ALL:
                os.fchmod(fd, mode | OWNER_MAY_ALL)

    def remove(self, path: bytes, *, is_dir: bool) -> None:
        """Removes a name, or a directory that is empty by now."""
        parent, _, name = path.rpartition(b"/")
        with self.folder(parent) as fd:
            if is_dir:
                os.rmdir(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)

    def make_dir(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        with self.folder(parent) as fd:
            os.mkdir(name, OWNER_MAY_ALL, dir_fd=fd)

    def write_files(self, parent: bytes, entries: list[Entry], read: ReadExtent) -> Iterator[Entry]:
        """New files in one directory, in place of what bears their names; gives each when it is written."""
        with self.folder(parent) as folder:
            for entry in entries:
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=folder)
                fd = os.open(entry.name, NEW_FILE, 0o600, dir_fd=folder)
                try:
                    _fill(fd, entry, read)
                    _dress(fd, entry)
                finally:
                    os.close(fd)
                yield entry

    def dress(self, entry: Entry) -> None:
        """Gives a file or directory its mode and time."""
        if entry.kind == "dir":
            with self.folder(entry.path) as fd:
                _dress(fd, entry)
            return
        with self.folder(entry.parent) as folder:
            fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                _dress(fd, entry)
            finally:
                os.close(fd)

    def make_symlink(self, entry: Entry) -> None:
        with self.folder(entry.parent) as fd:
            os.symlink(entry.target, entry.name, dir_fd=fd)
            os.utime(entry.name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def read_symlink(self, entry: Entry) -> bytes:
        with self.folder(entry.parent) as fd:
            return os.readlink(entry.name, dir_fd=fd)

    def make_hardlink(self, entry: Entry) -> None:
        parent, _, name = entry.target.rpartition(b"/")
        with self.folder(parent) as source, self.folder(entry.parent) as folder:
            os.link(name, entry.name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)

    def has_content(self, entry: Entry, is_same: Callable[[Iterator[bytes]], bool]) -> bool:
        """Holds the file exactly the bytes of the entry's extents, and no data in its holes?"""
        try:
            with self.folder(entry.parent) as folder:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(entry.name, flags, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                return False
            raise
        try:
            if entry.is_sparse and list(data_segments(fd, entry.size)) != _segments(entry):
                return False
            return is_same(os.pread(fd, extent.length, extent.at) for extent in entry.extents)
        finally:
            os.close(fd)


def _fill(fd: int, entry: Entry, read: ReadExtent) -> None:
    for extent in entry.extents:
        rest, at = memoryview(read(extent)), extent.at
        while rest:
            written = os.pwrite(fd, rest, at)
            rest, at = rest[written:], at + written
    if entry.is_sparse:
        os.ftruncate(fd, entry.size)


def _dress(fd: int, entry: Entry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _segments(entry: Entry) -> list[tuple[int, int]]:
    """The ranges that the extents cover, neighbours joined."""
    segments: list[tuple[int, int]] = []
    for extent in entry.extents:
        if segments and segments[-1][1] == extent.at:
            segments[-1] = (segments[-1][0], extent.at + extent.length)
        else:
            segments.append((extent.at, extent.at + extent.length))
    return segments
