"""The receiver's only hand on the mirrored tree: every step of a path is opened by itself and follows no link.

New content grows in a directory of the receiver's own inside the workspace (so on the same file system), and what is
removed is first moved there: to put a batch in place takes a few renames, however large it is.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from common.host.livesync.errors import Lacks
from common.host.livesync.frames import (
    PARTS,
    PIECE_BYTES_MAX,
    Delete,
    Dress,
    Entry,
    File,
    Folder,
    Link,
    Listing,
    Meta,
    Move,
    Placed,
    Same,
    Tail,
    require,
)
from common.host.livesync.look import KINDS, entry_of, is_same, names
from common.snapshots.limits import PART_PREFIX
from common.snapshots.mapped import write_back
from common.snapshots.scan import DIRECTORY
from common.snapshots.tree import NEW_FILE, join, write_at

OPEN_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOLDERS_OPEN_MAX = 256
SYNCED_SINGLY_MAX = 4
"""More files or directories than that are made durable by one call for the whole file system (measured: 50 new files
take 12 ms by it and 108 ms one by one; yet it writes what everybody else has left unwritten, too)."""
DIGEST_FROM_BYTES = 1 << 16
"""A file of the right size and another time is compared by digest from here on; a smaller one is simply sent."""

Change = File | Placed | Tail | Meta | Same | Link | Folder | Delete | Move | Listing


class Place:
    """`is_left_out(path, is_dir)`: names that no side mirrors; they are left alone."""

    def __init__(self, root: Path, is_left_out: Callable[[bytes, bool], bool]) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.is_left_out = is_left_out
        self._folders: dict[bytes, int] = {}
        self._may_chown = os.geteuid() == 0
        self._numbers = itertools.count(1)
        self._gone: list[bytes] = []
        self._touched_folders: set[bytes] = set()
        self._touched_files: list[int] = []
        self._parts = self._open_parts()
        self.empty()

    def _open_parts(self) -> int:
        try:
            os.mkdir(PARTS, 0o700, dir_fd=self._root)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(PARTS, dir_fd=self._root, follow_symlinks=False).st_mode):
                os.unlink(PARTS, dir_fd=self._root)
                os.mkdir(PARTS, 0o700, dir_fd=self._root)
        return os.open(PARTS, DIRECTORY, dir_fd=self._root)

    def renew(self) -> None:
        """Nothing is remembered of the tree: others (a restore) may have changed it while no sender was there."""
        self._forget()
        os.close(self._parts)
        self._parts = self._open_parts()
        self.empty()

    def close(self) -> None:
        self._forget()
        os.close(self._parts)
        os.close(self._root)

    def empty(self) -> None:
        """Of what was removed, or never finished."""
        for name in names(self._parts):
            self.discard(name)

    def throw_away(self) -> None:
        """What was removed."""
        while self._gone:
            self.discard(self._gone.pop())

    def discard(self, part: bytes) -> None:
        if stat.S_ISDIR(os.stat(part, dir_fd=self._parts, follow_symlinks=False).st_mode):
            shutil.rmtree(os.fsdecode(part), dir_fd=self._parts)
        else:
            os.unlink(part, dir_fd=self._parts)

    # --- before the lock: content

    def new_part(self) -> tuple[bytes, int]:
        """The name and an open descriptor of an empty file that nobody sees."""
        part = b"%d" % next(self._numbers)
        return part, os.open(part, NEW_FILE, 0o600, dir_fd=self._parts)

    def write_part(self, file: File) -> bytes:
        part, fd = self.new_part()
        try:
            write_at(fd, file.data, 0)
            self.dress(fd, file.dress)
        finally:
            os.close(fd)
        return part

    def sync_parts(self, parts: list[bytes]) -> None:
        """Durable, all of them."""
        if len(parts) > SYNCED_SINGLY_MAX:
            write_back(self._root)
            return
        for part in parts:
            fd = os.open(part, READ_FILE, dir_fd=self._parts)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def dress(self, fd: int, dress: Dress) -> None:
        """Owner before mode: a change of owner takes the set-uid bit away."""
        if self._may_chown:
            os.fchown(fd, dress.uid, dress.gid)
        os.fchmod(fd, dress.mode)
        os.utime(fd, ns=(dress.mtime_ns, dress.mtime_ns))

    # --- under the lock: names

    def put(self, change: Change, part: bytes = b"") -> list[bytes]:
        """Carries a change out; the names below its path that the sender is asked for (of a listing).

        `part` holds the content of a File or Placed. Raises `Lacks`, having changed nothing, and OSError.
        """
        match change:
            case File() | Placed():
                self._name_part(part, change.path)
            case Tail():
                self._append(change)
            case Meta():
                fd = self._open_file(change.path, lambda status: status.st_size == change.size)
                self._dress_file(fd, change.dress)
            case Same(path, entry):
                self._same(path, entry)
            case Link(path, dress, target):
                self._link(path, dress, target)
            case Folder(path, dress):
                self._folder(path, dress)
            case Delete(path):
                self._remove(path)
            case Move():
                self._move(change)
            case Listing():
                return self._compare(change)
        return []

    def settle(self) -> None:
        """Everything that was put is durable, names included."""
        if len(self._touched_files) + len(self._touched_folders) > SYNCED_SINGLY_MAX:
            write_back(self._root)
        else:
            for fd in self._touched_files:
                os.fsync(fd)
            for path in self._touched_folders:
                os.fsync(self._open_folder(path))
        self.unsettle()

    def unsettle(self) -> None:
        """Forget what was put: it is settled, or given up with its connection."""
        for fd in self._touched_files:
            os.close(fd)
        self._touched_files.clear()
        self._touched_folders.clear()

    # --- reading

    def entries(self, path: bytes, after: bytes, until: bytes | None) -> list[Entry]:
        """What is there of the names in (after, until], in order; without what no side mirrors."""
        fd = self._open_folder(path)
        chosen = [name for name in sorted(names(fd)) if name > after and (until is None or name <= until)]
        return [entry for name in chosen if (entry := self._entry(fd, name)) and not self._is_ours(path, entry)]

    def digest(self, path: bytes, size: int) -> bytes:
        """BLAKE3 of a file that has exactly this size; else empty: there is nothing that content could tell."""
        if size < DIGEST_FROM_BYTES:
            return b""
        try:
            fd = self._open_file(path, lambda status: status.st_size == size)
        except (Lacks, OSError):
            return b""
        with os.fdopen(fd, "rb") as file:
            from blake3 import blake3

            hasher = blake3()
            while piece := file.read(PIECE_BYTES_MAX):
                hasher.update(piece)
        return hasher.digest()

    # --- each kind of change

    def _name_part(self, part: bytes, path: bytes) -> None:
        folder, name = self._parent(path)
        entry = self._entry(folder, name)
        if entry and entry.kind == b"d":
            self._remove(path)
        os.rename(part, name, src_dir_fd=self._parts, dst_dir_fd=folder)
        self._touch(path)

    def _append(self, tail: Tail) -> None:
        fd = self._open_file(tail.path, lambda status: status.st_size == tail.offset)
        write_at(fd, tail.data, tail.offset)
        self._dress_file(fd, tail.dress)

    def _same(self, path: bytes, entry: Entry) -> None:
        if entry.kind == b"f":
            size, time = entry.size, entry.dress.mtime_ns
            fd = self._open_file(path, lambda status: (status.st_size, status.st_mtime_ns) == (size, time))
            self._dress_file(fd, entry.dress)
        elif entry.kind == b"d":
            self._folder(path, entry.dress)
        else:
            self._link(path, entry.dress, entry.target)

    def _link(self, path: bytes, dress: Dress, target: bytes) -> None:
        """Made beside its place, then moved there: a link that changes is never missing."""
        folder, name = self._parent(path)
        entry = self._entry(folder, name)
        part = b"%d" % next(self._numbers)
        os.symlink(target, part, dir_fd=self._parts)
        if self._may_chown:
            os.chown(part, dress.uid, dress.gid, dir_fd=self._parts, follow_symlinks=False)
        os.utime(part, ns=(dress.mtime_ns, dress.mtime_ns), dir_fd=self._parts, follow_symlinks=False)
        if entry and entry.kind == b"d":
            self._remove(path)
        os.rename(part, name, src_dir_fd=self._parts, dst_dir_fd=folder)
        self._touch(path)

    def _folder(self, path: bytes, dress: Dress) -> None:
        if path:
            folder, name = self._parent(path)
            entry = self._entry(folder, name)
            if entry is None or entry.kind != b"d":
                self._remove(path)
                os.mkdir(name, 0o700, dir_fd=folder)
                self._touch(path)
        self.dress(self._open_folder(path), dress)

    def _remove(self, path: bytes) -> None:
        """Out of sight at once, whatever it is; what is gone already is fine."""
        try:
            folder, name = self._parent(path)
            gone = b"%d" % next(self._numbers)
            os.rename(name, gone, src_dir_fd=folder, dst_dir_fd=self._parts)
        except (FileNotFoundError, Lacks):
            return
        self._gone.append(gone)
        self._forget_below(path)
        self._touch(path)

    def _move(self, move: Move) -> None:
        require(not (move.path + b"/").startswith(move.source + b"/"), "a move into itself")
        source, old = self._parent_or(move.source, move.path)
        folder, name = self._parent(move.path)
        found, in_the_way = self._entry(source, old), self._entry(folder, name)
        if found is None or not is_same(found, move.entry):
            raise Lacks(move.path)
        if in_the_way and b"d" in (found.kind, in_the_way.kind):
            if found.kind == in_the_way.kind:
                raise Lacks(move.path)  # a mirror of part of it is there already: it is completed, not thrown away
            self._remove(move.path)
        os.rename(old, name, src_dir_fd=source, dst_dir_fd=folder)
        inside = move.source + b"/"
        below = {touched for touched in self._touched_folders if (touched + b"/").startswith(inside)}
        self._forget_below(move.source)
        self._touched_folders |= {move.path + touched[len(move.source) :] for touched in below}
        self._touch(move.source)
        self._touch(move.path)
        if found.kind == b"f":
            self._dress_file(self._open_file(move.path, lambda _status: True), move.entry.dress)

    def _compare(self, listing: Listing) -> list[bytes]:
        """Mends what takes no content, and says which names need some."""
        until = None if listing.is_last else listing.entries[-1].name if listing.entries else listing.after
        there = {entry.name: entry for entry in self.entries(listing.path, listing.after, until)}
        wanted = []
        for entry in listing.entries:
            found = there.pop(entry.name, None)
            if found == entry:
                continue
            path = join(listing.path, entry.name)
            if entry.kind == b"f":
                if found is None or not is_same(found, entry):
                    wanted.append(entry.name)
                    continue
                self._same(path, entry)
            elif entry.kind == b"l" or found is None or found.kind != b"d":
                self._same(path, entry)
            else:
                self.dress(self._open_folder(path), entry.dress)
        for name in there:
            self._remove(join(listing.path, name))
        return wanted

    # --- steps

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        folder, _, name = path.rpartition(b"/")
        return self._open_folder(folder), name

    def _parent_or(self, path: bytes, asked: bytes) -> tuple[int, bytes]:
        try:
            return self._parent(path)
        except Lacks:
            raise Lacks(asked) from None

    def _open_folder(self, path: bytes) -> int:
        """A descriptor that stays open for the next who asks. Raises `Lacks` naming the step that is no directory."""
        fd = self._folders.get(path)
        if fd is not None:
            return fd
        if len(self._folders) >= FOLDERS_OPEN_MAX:
            self._forget()
        if not path:
            fd = os.open(b".", DIRECTORY, dir_fd=self._root)
        else:
            above, name = self._parent(path)
            try:
                fd = os.open(name, DIRECTORY, dir_fd=above)
            except (FileNotFoundError, NotADirectoryError):  # a link, too, is ENOTDIR
                raise Lacks(path) from None
        self._folders[path] = fd
        return fd

    def _open_file(self, path: bytes, fits: Callable[[os.stat_result], bool]) -> int:
        folder, name = self._parent(path)
        entry = self._entry(folder, name)
        if entry is None or entry.kind != b"f":
            raise Lacks(path)
        fd = os.open(name, OPEN_FILE, dir_fd=folder)
        if not fits(os.fstat(fd)):
            os.close(fd)
            raise Lacks(path)
        return fd

    def _dress_file(self, fd: int, dress: Dress) -> None:
        self.dress(fd, dress)
        if len(self._touched_files) <= SYNCED_SINGLY_MAX:
            self._touched_files.append(fd)
        else:  # so many are made durable together, and none need stay open for that
            os.close(fd)

    def _entry(self, folder: int, name: bytes) -> Entry | None:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            kind = KINDS.get(stat.S_IFMT(status.st_mode), b"?")
            target = os.readlink(name, dir_fd=folder) if kind == b"l" else b""
        except FileNotFoundError:
            return None
        return entry_of(name, kind, status, target)

    def _is_ours(self, folder: bytes, entry: Entry) -> bool:
        return entry.name.startswith(PART_PREFIX) or self.is_left_out(join(folder, entry.name), entry.kind == b"d")

    def _touch(self, path: bytes) -> None:
        self._touched_folders.add(path.rpartition(b"/")[0])

    def _forget_below(self, path: bytes) -> None:
        inside = path + b"/"
        gone = [known for known in self._folders if known == path or known.startswith(inside)]
        for known in gone:
            os.close(self._folders.pop(known))
        self._touched_folders -= {touched for touched in self._touched_folders if (touched + b"/").startswith(inside)}

    def _forget(self) -> None:
        for fd in self._folders.values():
            os.close(fd)
        self._folders.clear()
