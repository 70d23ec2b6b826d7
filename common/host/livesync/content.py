"""How the sender reads a workspace that is in use: what a path is at this moment, and what a file holds.

Nothing here waits for the file to be left alone; whoever reads compares size and time before and after.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from common.host.livesync.frames import PIECE_BYTES_MAX, Entry
from common.host.livesync.look import KINDS, entry_of
from common.snapshots.limits import PART_PREFIX
from common.snapshots.scan import DIRECTORY
from common.snapshots.tree import join

if TYPE_CHECKING:
    from blake3 import blake3 as Hasher  # noqa: N812 - it is a class with a function's name

READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
EDGE_BYTES = 4096
"""The last bytes of what was sent: an appended file still has them where they were."""
LINKS_MAX = 100_000
"""Names of files that have several, which are remembered: of the others the kernel tells no change."""
READS_MAX = 3
"""Of a small file that changes while it is read."""


@dataclass
class Sent:
    """What the receiver has of a file that may grow."""

    inode: int
    size: int
    hasher: Hasher
    edge: bytes
    check_at_s: float = 0.0
    """Not before: to read the whole of a large log at every line would cost more than the log."""

    def add(self, data: bytes) -> None:
        self.hasher.update(data)
        self.size += len(data)
        self.edge = (self.edge + data)[-EDGE_BYTES:]


def proof_of(status: os.stat_result, size: int | None = None) -> tuple[int, ...]:
    """Of a comparison of the first `size` bytes; of the whole file, with its time, when left out."""
    return (status.st_ino, status.st_size, status.st_mtime_ns) if size is None else (status.st_ino, size)


class Changing(Exception):
    """The file changed while it was read."""


class Names:
    """The names of files that have several, as far as they were met.

    An event names only the one that a file was written by. Whoever looks at that looks at the others too, also if it is
    gone by then, or is another file's.
    """

    def __init__(self) -> None:
        self._of: dict[int, set[bytes]] = {}
        self._inodes: dict[bytes, int] = {}

    def met(self, path: bytes, inode: int) -> None:
        if self._inodes.get(path) != inode and len(self._inodes) < LINKS_MAX:
            self._forget(path)
            self._inodes[path] = inode
            self._of.setdefault(inode, set()).add(path)

    def others(self, path: bytes) -> set[bytes]:
        inode = self._inodes.get(path)
        return set() if inode is None else self._of[inode] - {path}

    def gone(self, path: bytes, inode: int) -> set[bytes]:
        """The path is another file by now (inode 0: none): what else its former one was called."""
        if self._inodes.get(path, inode) == inode:
            return set()
        others = self.others(path)
        self._forget(path)
        return others

    def moved(self, source: bytes, path: bytes) -> None:
        below = source + b"/"
        for known in [known for known in self._inodes if known == source or known.startswith(below)]:
            inode = self._inodes[known]
            self._forget(known)
            self.met(path + known[len(source) :], inode)

    def _forget(self, path: bytes) -> None:
        inode = self._inodes.pop(path, None)
        if inode is not None:
            self._of[inode].discard(path)
            if not self._of[inode]:
                del self._of[inode]


class Source:
    """The workspace; `is_left_out(path, is_dir)` names what is not mirrored."""

    def __init__(self, root: str | bytes | os.PathLike[str], is_left_out: Callable[[bytes, bool], bool]) -> None:
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.is_left_out = is_left_out
        self.names = Names()

    def close(self) -> None:
        os.close(self.root)

    def entry(self, path: bytes) -> Entry | None:
        """None: it is not there, or it is nothing that is mirrored (a socket, a device).

        Raises OSError when the disk does not say: what cannot be looked at is not gone.
        """
        try:
            status = os.stat(path or b".", dir_fd=self.root, follow_symlinks=False)
            return self._entry(path, status, lambda: os.readlink(path, dir_fd=self.root))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def same_files(self, path: bytes) -> set[bytes]:
        """Names that may have changed with this one."""
        try:
            status = os.stat(path, dir_fd=self.root, follow_symlinks=False)
        except OSError:
            return self.names.gone(path, 0)
        gone = self.names.gone(path, status.st_ino)
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            self.names.met(path, status.st_ino)
        return gone | self.names.others(path)

    def is_settled(self, path: bytes) -> bool:
        """Nobody need be waited for: it is no plain file, or one that only got a further name."""
        try:
            status = os.stat(path, dir_fd=self.root, follow_symlinks=False)
        except OSError:
            return True
        return not stat.S_ISREG(status.st_mode) or status.st_nlink > 1

    def still(self, path: bytes, was: os.stat_result) -> os.stat_result | None:
        """Of a file that was read, if the name is still its: its present mode and owner, unless its content is new."""
        try:
            status = os.stat(path, dir_fd=self.root, follow_symlinks=False)
        except OSError:
            return None
        if status.st_ino != was.st_ino:
            return None
        return status if (status.st_size, status.st_mtime_ns) == (was.st_size, was.st_mtime_ns) else was

    def open_folder(self, path: bytes) -> int | None:
        """None: it is not there. Raises OSError when the disk does not say."""
        try:
            return os.open(path or b".", DIRECTORY, dir_fd=self.root)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def entries(self, path: bytes, folder: int) -> list[Entry]:
        """What a directory holds, in the order of names; what vanishes meanwhile is left out."""
        found = []
        with os.scandir(folder) as each:
            for one in each:
                name = os.fsencode(one.name)
                try:
                    status = one.stat(follow_symlinks=False)
                    entry = self._entry(join(path, name), status, lambda name=name: os.readlink(name, dir_fd=folder))  # type: ignore[misc]
                except FileNotFoundError:
                    continue
                if entry and not self.is_out(join(path, name), entry.kind == b"d"):
                    found.append(entry)
        return sorted(found)

    def is_out(self, path: bytes, is_dir: bool) -> bool:
        return path.rpartition(b"/")[2].startswith(PART_PREFIX) or self.is_left_out(path, is_dir)

    def open_file(self, path: bytes) -> int | None:
        """None: it cannot be opened now, or is no plain file."""
        try:
            fd = os.open(path, READ_FILE, dir_fd=self.root)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def _entry(self, path: bytes, status: os.stat_result, target: Callable[[], bytes]) -> Entry | None:
        kind = KINDS.get(stat.S_IFMT(status.st_mode))
        if kind == b"f" and status.st_nlink > 1:
            self.names.met(path, status.st_ino)
        return entry_of(path.rpartition(b"/")[2], kind, status, target() if kind == b"l" else b"") if kind else None


def whole(fd: int, most: int) -> tuple[bytes, os.stat_result]:
    """A small file of one moment. Raises `Changing` when it did not stay the same for one reading."""
    for _ in range(READS_MAX):
        before = os.fstat(fd)
        data = os.pread(fd, most + 1, 0)
        after = os.fstat(fd)
        if _moment(before) == _moment(after) and len(data) == after.st_size:
            return data, after
    raise Changing


def sent_of(inode: int, data: bytes) -> Sent:
    return Sent(inode, len(data), blake3(data), data[-EDGE_BYTES:])


def is_continued(fd: int, status: os.stat_result, sent: Sent, *, more_than: int) -> bool:
    """As far as a look tells: the same file with the same bytes where it ended, longer, or too large to send again."""
    if status.st_ino != sent.inode or status.st_size < sent.size or status.st_size == sent.size <= more_than:
        return False
    return os.pread(fd, len(sent.edge), sent.size - len(sent.edge)) == sent.edge


def digest(fd: int, size: int) -> bytes:
    """BLAKE3 of the first `size` bytes (fewer, when there are no more)."""
    hasher, at = blake3(), 0
    while at < size and (piece := os.pread(fd, min(PIECE_BYTES_MAX, size - at), at)):
        hasher.update(piece)
        at += len(piece)
    return hasher.digest()


def _moment(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
