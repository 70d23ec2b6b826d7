"""What a snapshot leaves out: caches that every machine fills again by itself, and what `.dumontignore` names.

`.dumontignore` lies in the root of the workspace, in gitignore's syntax; a line `!path/` takes something back in.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from common.snapshots.scan import Excludes

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".dumontignore"
DEFAULTS = (
    "lost+found/",
    ".Trash-0/",
    ".nv/ComputeCache/",
    ".cache/pip/",
    ".cache/uv/",
    ".npm/_cacache/",
)
"""Directories only: what lies in them is downloaded or computed anew."""
LAST_NAMES = {os.fsencode(pattern.rstrip("/").rpartition("/")[2]) for pattern in DEFAULTS}
MAX_IGNORE_BYTES = 1 << 20


def excludes(root: Path) -> Excludes:
    """Without an ignore file only directories whose last name is a default's are looked at."""
    try:
        with (root / IGNORE_FILE).open("rb") as file:
            lines = file.read(MAX_IGNORE_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        lines = []

    @cache
    def spec() -> GitIgnoreSpec:
        from pathspec import GitIgnoreSpec

        return GitIgnoreSpec.from_lines([*DEFAULTS, *lines])

    def is_left_out(path: bytes, is_dir: bool) -> bool:
        if not lines and not (is_dir and path.rpartition(b"/")[2] in LAST_NAMES):
            return False
        return spec().match_file(os.fsdecode(path) + ("/" if is_dir else ""))

    return Excludes(looks_at_files=bool(lines), names=is_left_out)
