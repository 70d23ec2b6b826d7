"""Files that are whole or not there, whatever dies, and in spite of a disk that the user has filled.

The agent's folder lies on the disk of the workspace, and everybody's words must be written down when that is full:
that it is frozen, say, before its last snapshot. So the agent keeps a ballast there, whose room is given to the first
who finds none.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from common.errors import is_full

BALLAST = "ballast"
BALLAST_BYTES = 2 << 20
"""Many times what the agent and its programs write."""
BALLAST_FROM_BYTES = 8 * BALLAST_BYTES
"""It is made again when so much is free: not of the little that somebody has just found."""


def write_atomically(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the machine dies; in the agent's folder, or one in it."""
    try:
        _write(path, data)
    except OSError as error:
        if not is_full(error):
            raise
        for folder in path.parents[:2]:
            (folder / BALLAST).unlink(missing_ok=True)
        _write(path, data)


def keep_ballast(home: Path) -> None:
    """When there is none, and room for it."""
    ballast = home / BALLAST
    if ballast.exists() or shutil.disk_usage(home).free < BALLAST_FROM_BYTES:
        return
    try:
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
    except OSError:
        with suppress(OSError):
            ballast.unlink()


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
