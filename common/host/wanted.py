"""What somebody on the machine waits for while its workspace comes back: `dumont-host want PATH`.

A file beside the agent's state: the workspace first, then the paths that were asked for, each closed by a zero byte.
It is there while a restore runs; the engine looks into it before it asks for the next objects. Nothing else watches.
"""

from __future__ import annotations

import os
import time  # noqa: TID251 - whoever asks waits in real time
from collections.abc import Sequence
from pathlib import Path

from common.errors import NotFound

NAME = "wanted"
READ_BYTES_MAX = 1 << 20
"""Anybody on the machine may write to it."""
PATHS_MAX = 256
"""The newest count."""
POLL_S = 0.05


class Wishes:
    """The engine's end."""

    def __init__(self, home: Path, workspace: Path) -> None:
        self._file = home / NAME
        self._seen = -1
        self._paths: list[bytes] = []
        self._head = bytes(workspace) + b"\0"

    def open(self) -> None:
        """Empty; everybody on the machine may ask."""
        self._file.write_bytes(self._head)
        self._file.chmod(0o666)

    def close(self) -> None:
        self._file.unlink(missing_ok=True)

    def __call__(self) -> Sequence[bytes]:
        """Below the workspace, in the order in which they were asked for."""
        try:
            size = self._file.stat().st_size
            if size != self._seen:
                with self._file.open("rb") as file:
                    paths = file.read(READ_BYTES_MAX).removeprefix(self._head).split(b"\0")[:-1]
                self._paths, self._seen = paths[-PATHS_MAX:], size
        except OSError:
            return ()
        return self._paths


def want(home: Path, paths: Sequence[Path], *, wait_s: float) -> list[Path]:
    """Ask for files or directories, and wait until they are there; those that are not within `wait_s`.

    Raises `NotFound` when no restore is under way and one of them is not there, or lies outside of the workspace.
    """
    file = home / NAME
    try:
        root = Path(os.fsdecode(file.read_bytes()[:READ_BYTES_MAX].partition(b"\0")[0]))
    except OSError:
        if missing := [path for path in paths if not path.exists()]:
            raise NotFound(f"no restore is under way, and {missing[0]} is not there") from None
        return []
    inside = [_below(root, path) for path in paths]
    with file.open("ab", buffering=0) as wishes:
        wishes.write(b"".join(path + b"\0" for path in inside))
    until = time.monotonic() + wait_s
    left = list(paths)
    while left := [path for path in left if not path.exists()]:
        if time.monotonic() >= until or not file.exists():
            return [path for path in left if not path.exists()]
        time.sleep(POLL_S)
    return []


def _below(root: Path, path: Path) -> bytes:
    whole = Path(os.path.normpath(Path.cwd() / path))
    if not whole.is_relative_to(root):
        raise NotFound(f"{path} is not in the workspace {root}")
    inside = bytes(whole.relative_to(root))
    return b"" if inside == b"." else inside
