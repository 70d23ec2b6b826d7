"""Where packs wait for their upload: a few unnamed files, used again and again, in memory where there is enough.

Unnamed, so that whatever kills the engine leaves nothing behind; a fixed number, so that what waits is bounded; used
again, so that the kernel need not clear new pages for each pack. s5cmd reads them by their descriptors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path

from common.errors import DiskFull
from common.snapshots.limits import MAX_CHUNK_BYTES
from common.snapshots.pack import PACK_BYTES

SLOT_BYTES = PACK_BYTES + MAX_CHUNK_BYTES + (1 << 16)
SLOTS = 20
STAGE_BYTES = SLOTS * SLOT_BYTES
MEMORY_SHARE = 8
"""The stage lies in memory when at least so many times its size is free."""
CONTAINER_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}

assert STAGE_BYTES <= 256 << 20


@dataclass
class Stage:
    """Slots by their descriptors."""

    slots: tuple[int, ...]
    manifest: int
    """One file more, for what is sent last."""
    in_memory: bool
    _contents: dict[int, memoryview] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    """The one that was used last is at the end: it is used next, for its memory is there already."""
    _out: set[int] = field(default_factory=set)

    def claim(self) -> int | None:
        """A slot to write to; None = wait until one is free. Raises `DiskFull` when there is no room for a single one.

        A disk without room for all of them slows the snapshot down; it never fails half-way through a pack.
        """
        while self._free:
            slot = self._free.pop()
            if self.in_memory or _has_room(slot):
                self._out.add(slot)
                return slot
            self._free = [other for other in self._free if os.fstat(other).st_size]  # those have room of their own
        if not self._out:
            raise DiskFull("the disk of the state directory has no room to stage a pack")
        return None

    def content(self, slot: int, size: int) -> memoryview:
        """What was written to the slot, without a copy of it; no longer than it really is."""
        return self._contents[slot][:size]

    def release(self, slot: int) -> None:
        self._out.remove(slot)
        self._free.append(slot)


@contextmanager
def staged(folder: Path, *, in_memory: bool | None = None) -> Iterator[Stage]:
    """Slots in memory, or on the disk of `folder`; the program that is handed them reads `path_of(slot)`."""
    memory = free_memory_bytes() >= MEMORY_SHARE * STAGE_BYTES if in_memory is None else in_memory
    files = [os.memfd_create("dumont-stage") if memory else _unnamed(folder) for _ in range(SLOTS + 1)]
    try:
        slots = files[:SLOTS]
        yield Stage(tuple(slots), files[SLOTS], memory, {slot: _mapped(slot) for slot in slots}, slots)
    finally:
        for fd in files:
            os.close(fd)


def path_of(slot: int) -> str:
    return f"/proc/self/fd/{slot}"


def free_memory_bytes() -> int:
    """What the machine says, or the container's limit where that is less; 0 when nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 0
    for limit, used in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return free


def _unnamed(folder: Path) -> int:
    """On the folder's disk, and gone with the process."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system that knows no such files
        from tempfile import mkstemp

    fd, name = mkstemp(dir=folder)
    os.unlink(name)  # noqa: PTH108 - at once: nothing of it outlives the process
    return fd


def _mapped(slot: int) -> memoryview:
    """Once for all packs that it will hold: to map each of them anew takes as long as to sum it."""
    os.ftruncate(slot, SLOT_BYTES)
    content = memoryview(mmap(slot, SLOT_BYTES))
    os.ftruncate(slot, 0)
    return content


def _has_room(slot: int) -> bool:
    try:
        os.posix_fallocate(slot, 0, SLOT_BYTES)
    except OSError as error:
        if error.errno not in FULL:
            raise
        os.ftruncate(slot, 0)
        return False
    return True
