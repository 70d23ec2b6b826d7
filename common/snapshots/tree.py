"""Changes a directory tree without ever leaving it: each step of a path is opened by itself and follows no link."""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from blake3 import blake3

from common.snapshots.codec import Plain
from common.snapshots.limits import PART_PREFIX
from common.snapshots.manifest import Entry, Extent
from common.snapshots.scan import DIRECTORY, Stamp, data_segments, stamp

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OLD_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
OWNER_MAY_ALL = 0o700
PLAIN_MODE = 0o777
"""What a file can be made with; the rest of a mode is given to it afterwards."""
FOLDERS_OPEN = 64
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENXIO}


class Tree:
    """A workspace below `root_fd`. Paths are bytes relative to it; `b""` is the root."""

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self._folders: OrderedDict[bytes, int] = OrderedDict()
        self._may_chown = os.geteuid() == 0

    def close(self) -> None:
        for fd in self._folders.values():
            os.close(fd)
        self._folders.clear()

    def folder(self, path: bytes) -> int:
        """A descriptor of the directory, kept for the next who asks.

        Raises OSError when any step is missing, no directory, or a link.
        """
        if path in self._folders:
            self._folders.move_to_end(path)
            return self._folders[path]
        known, rest = self._nearest(path)
        fd = os.dup(self._folders.get(known, self._root))
        for name in rest:
            try:
                below = os.open(name, DIRECTORY, dir_fd=fd)
            finally:
                self._keep(known, fd)
            known, fd = join(known, name), below
        self._keep(known, fd)
        return fd

    def _nearest(self, path: bytes) -> tuple[bytes, list[bytes]]:
        """The nearest directory above that is open, and the steps from there."""
        names: list[bytes] = []
        while path and path not in self._folders:
            path, _, name = path.rpartition(b"/")
            names.append(name)
        return path, names[::-1]

    def _keep(self, path: bytes, fd: int) -> None:
        """The one that was used longest ago is closed."""
        if path in self._folders:
            os.close(self._folders.pop(path))
        self._folders[path] = fd
        if len(self._folders) > FOLDERS_OPEN:
            os.close(self._folders.popitem(last=False)[1])

    def listing(self) -> dict[bytes, os.stat_result]:
        """Everything that is there, a directory before its content."""
        found: dict[bytes, os.stat_result] = {}
        waiting = [b""]
        while waiting:
            directory = waiting.pop()
            fd = os.open(b".", DIRECTORY, dir_fd=self.folder(directory))
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        path = join(directory, os.fsencode(entry.name))
                        found[path] = entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(path)
            finally:
                os.close(fd)
        return found

    def status(self) -> os.stat_result:
        """Of the root."""
        return os.fstat(self._root)

    def give_back(self, path: bytes, mode: int, mtime_ns: int) -> None:
        """A directory's mode and time as they were; one that is gone is no matter."""
        with suppress(OSError):
            fd = self.folder(path)
            os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime_ns, mtime_ns))

    def unlock(self, path: bytes) -> None:
        """Lets the owner change what the directory holds."""
        fd = self.folder(path)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & OWNER_MAY_ALL != OWNER_MAY_ALL:
            os.fchmod(fd, mode | OWNER_MAY_ALL)

    def remove(self, path: bytes, *, is_dir: bool) -> None:
        """Removes a name, or a directory that is empty by now; what is gone already is fine."""
        parent, _, name = path.rpartition(b"/")
        with suppress(FileNotFoundError):
            if is_dir:
                self._forget_below(path)
                os.rmdir(name, dir_fd=self.folder(parent))
            else:
                os.unlink(name, dir_fd=self.folder(parent))

    def make_dir(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        os.mkdir(name, OWNER_MAY_ALL, dir_fd=self.folder(parent))

    def write(self, entry: Entry, pieces: Iterable[tuple[int, Plain]]) -> Stamp:
        """A new file in place of what bears its name: its pieces as (offset, bytes), mode, owner, time.

        It is made with its mode and as ours; what that did not bring about (a mask of modes, another owner) is seen
        in the end, and mended: for most files of most trees nothing is.
        """
        folder, name = self._folder_and_name(entry.path)
        mode = 0o600 if entry.xattrs else entry.mode & PLAIN_MODE  # attributes can be given to what its owner may write
        fd = _open_new(name, mode, folder)
        try:
            size = 0
            for at, piece in pieces:
                write_at(fd, piece, at)
                size += len(piece)
            if size < entry.size:  # it ends in a hole, or is one
                os.ftruncate(fd, entry.size)
            if entry.xattrs:
                self._dress(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            status = os.fstat(fd)
            if not self._is_dressed(entry, status):
                self._dress(fd, entry)
                status = os.fstat(fd)
            return stamp(status)
        finally:
            os.close(fd)

    def begin_part(self, entry: Entry, *, from_old: bool, has_part: bool) -> None:
        """The file under a name of its own, as long as it will be: empty, or what is there of it."""
        folder, part = self.folder(entry.parent), part_of(entry.path).rpartition(b"/")[2]
        if from_old:
            os.rename(entry.name, part, src_dir_fd=folder, dst_dir_fd=folder)
        if from_old or has_part:
            os.chmod(part, 0o600, dir_fd=folder)
            fd = os.open(part, OLD_FILE, dir_fd=folder)
        else:
            fd = _open_new(part, 0o600, folder)
        try:
            os.ftruncate(fd, entry.size)
        finally:
            os.close(fd)

    def open_part(self, entry: Entry) -> int:
        return os.open(part_of(entry.path).rpartition(b"/")[2], OLD_FILE, dir_fd=self.folder(entry.parent))

    def finish_part(self, entry: Entry) -> Stamp:
        """Complete: dressed, and under its own name from now on."""
        folder, part = self.folder(entry.parent), part_of(entry.path).rpartition(b"/")[2]
        fd = os.open(part, OLD_FILE, dir_fd=folder)
        try:
            self._dress(fd, entry)
            os.rename(part, entry.name, src_dir_fd=folder, dst_dir_fd=folder)
            return stamp(os.fstat(fd))
        finally:
            os.close(fd)

    def dress(self, entry: Entry) -> None:
        """Gives a file or directory its owner, mode and time."""
        if entry.kind == "dir":
            self._dress(self.folder(entry.path), entry)
            return
        folder = self.folder(entry.parent)
        if os.geteuid():
            os.chmod(entry.name, 0o600, dir_fd=folder)
        fd = os.open(entry.name, READ_FILE, dir_fd=folder)
        try:
            self._dress(fd, entry)
        finally:
            os.close(fd)

    def make_symlink(self, entry: Entry) -> None:
        folder = self.folder(entry.parent)
        with suppress(FileNotFoundError):
            os.unlink(entry.name, dir_fd=folder)
        os.symlink(entry.target, entry.name, dir_fd=folder)
        if self._may_chown and entry.uid >= 0:
            os.chown(entry.name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        os.utime(entry.name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def read_symlink(self, entry: Entry) -> bytes:
        return os.readlink(entry.name, dir_fd=self.folder(entry.parent))

    def make_hardlink(self, entry: Entry) -> None:
        parent, _, name = entry.target.rpartition(b"/")
        folder = os.dup(self.folder(entry.parent))
        try:
            with suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=folder)
            os.link(name, entry.name, src_dir_fd=self.folder(parent), dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

    def stamp(self, path: bytes) -> Stamp:
        parent, _, name = path.rpartition(b"/")
        return stamp(os.stat(name, dir_fd=self.folder(parent), follow_symlinks=False))

    def pieces(self, path: bytes, extents: Iterable[Extent]) -> Iterator[bytes]:
        """What stands in the file at the extents; nothing where it cannot be read."""
        parent, _, name = path.rpartition(b"/")
        try:
            fd = os.open(name, READ_FILE, dir_fd=self.folder(parent))
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise
            yield from (b"" for _ in extents)
            return
        try:
            yield from (os.pread(fd, extent.length, extent.at) for extent in extents)
        finally:
            os.close(fd)

    def keeps_holes_of(self, entry: Entry, path: bytes) -> bool:
        """Is there no data in the file at `path` where the entry has a hole?"""
        folder, name = self._folder_and_name(path)
        try:
            fd = os.open(name, READ_FILE, dir_fd=folder)
        except OSError:
            return False
        try:
            return _lie_in(data_segments(fd, entry.size), _segments(entry))
        finally:
            os.close(fd)

    def _folder_and_name(self, path: bytes) -> tuple[int, bytes]:
        parent, _, name = path.rpartition(b"/")
        return self.folder(parent), name

    def _is_dressed(self, entry: Entry, status: os.stat_result) -> bool:
        """Has it that mode, and that owner if we could give it?"""
        if stat.S_IMODE(status.st_mode) != entry.mode:
            return False
        return not self._may_chown or entry.uid < 0 or (status.st_uid, status.st_gid) == (entry.uid, entry.gid)

    def _dress(self, fd: int, entry: Entry) -> None:
        """Owner before mode: a change of owner takes the set-uid bit away."""
        if self._may_chown and entry.uid >= 0:
            os.fchown(fd, entry.uid, entry.gid)
        for name, value in entry.xattrs:
            with suppress(OSError):  # when permitted, as owners are
                os.setxattr(fd, name, value)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _forget_below(self, path: bytes) -> None:
        inside = path + b"/"
        for known in [known for known in self._folders if known == path or known.startswith(inside)]:
            os.close(self._folders.pop(known))


@contextmanager
def opened(root: str | bytes) -> Iterator[Tree]:
    """The tree at a directory that exists. A forked worker opens its own."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = Tree(fd)
    try:
        yield tree
    finally:
        tree.close()
        os.close(fd)


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def part_of(path: bytes) -> bytes:
    """Where the file grows until it is whole: beside its place, under a name that follows from its path."""
    parent, _, _ = path.rpartition(b"/")
    return join(parent, PART_PREFIX + blake3(path).hexdigest()[:32].encode())


def _open_new(name: bytes, mode: int, folder: int) -> int:
    """In place of what bears the name."""
    try:
        return os.open(name, NEW_FILE, mode, dir_fd=folder)
    except FileExistsError:
        os.unlink(name, dir_fd=folder)
        return os.open(name, NEW_FILE, mode, dir_fd=folder)


def write_at(fd: int, piece: Plain, at: int) -> None:
    written = os.pwrite(fd, piece, at)
    while written < len(piece):
        written += os.pwrite(fd, memoryview(piece)[written:], at + written)


def _lie_in(inner: Iterable[tuple[int, int]], outer: list[tuple[int, int]]) -> bool:
    """Is each of those ranges inside one of these, which are in order and apart?"""
    starts = [start for start, _ in outer]
    for start, end in inner:
        place = bisect_right(starts, start) - 1
        if place < 0 or end > outer[place][1]:
            return False
    return True


def _segments(entry: Entry) -> list[tuple[int, int]]:
    """The ranges that the extents cover, neighbours joined."""
    segments: list[tuple[int, int]] = []
    for extent in entry.extents:
        if segments and segments[-1][1] == extent.at:
            segments[-1] = (segments[-1][0], extent.at + extent.length)
        else:
            segments.append((extent.at, extent.at + extent.length))
    return segments
