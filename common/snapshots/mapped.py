"""Files that are mapped to memory: a store to them may be told by no time.

Linux sets the times of a file when a page of it that is clean is stored to, and not again through that mapping until
the page has been written back: a file that was read in between keeps its times whatever is stored to it. A new
mapping's first store is always told. So what somebody reads while it is mapped cannot be known by its times afterwards,
unless everything was written back before (which a tmpfs never does).
"""

from __future__ import annotations

import ctypes
import os
import re
import time  # noqa: TID251 - it reads the clock that files are stamped by
from contextlib import suppress
from pathlib import Path

from common.snapshots.state import TICK_NS

SHARED_AND_WRITABLE = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ .w.s \S+ \S+ (\d+)", re.MULTILINE)
"""A line of /proc/PID/maps, and its inode."""

_libc = ctypes.CDLL(None, use_errno=True)


def mapped_inodes() -> set[int]:
    """Of the files that a process which can be seen from here may store to without a word."""
    found: set[bytes] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another's
            found.update(SHARED_AND_WRITABLE.findall((process / "maps").read_bytes()))
    return set(map(int, found))


def write_back(folder: int) -> None:
    """Everything of the file system that this descriptor lies on; it is durable then. Raises OSError."""
    if _libc.syncfs(folder):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def file_clock_ns() -> int:
    """Now, or a step of the clock before, by which Linux stamps the files of its disks."""
    return time.time_ns() - TICK_NS


def let_stores_be_told(root: bytes | Path) -> int:
    """Whatever is stored from the return on is told by a time that is not before the one given.

    One call for all costs less than one for each file, and as much as the disk has left unwritten, by whomever; that
    the disk then refuses some of it is of no matter here.
    """
    told_from_ns = file_clock_ns()
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            write_back(folder)
    finally:
        os.close(folder)
    return told_from_ns
