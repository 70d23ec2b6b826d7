"""What is written to memory that a file is mapped to is told by the file's time, once the disk has what was before.

Linux sets the times of a file when a page of it that is clean is stored to, and not again until that page has been
written back: a file that was read in between keeps its times whatever is stored to it. So whoever reads files, and
means to know by their times whether they changed since, has everything written back first. (On a tmpfs, which writes
nothing back, such stores are never told.)
"""

from __future__ import annotations

import ctypes
import os
import time  # noqa: TID251 - it reads the clock that files are stamped by
from contextlib import suppress
from pathlib import Path

from common.snapshots.state import TICK_NS

_libc = ctypes.CDLL(None, use_errno=True)


def write_back(folder: int) -> None:
    """Everything of the file system that this descriptor lies on; it is durable then. Raises OSError."""
    if _libc.syncfs(folder):
        raise OSError(ctypes.get_errno(), "syncfs")


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
