"""What a process shows to its own user alone, read as that user."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_owner_of(pid: int) -> Iterator[None]:
    """What this thread reads meanwhile is read as that process's user (man 2 setfsuid). Raises OSError: it is gone.

    A container's root may trace nobody (it lacks CAP_SYS_PTRACE), and so is told nothing of other users' processes.
    """
    owner = Path(f"/proc/{pid}").stat()
    if owner.st_uid == os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None)
    libc.setfsgid(owner.st_gid)
    libc.setfsuid(owner.st_uid)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())
        libc.setfsgid(os.getegid())
