"""What a snapshot leaves out: caches that every machine fills again by itself, and what `.dumontignore` names.

`.dumontignore` lies in the root of the workspace, in gitignore's syntax; a line `!path/` takes something back in. A
line that is no pattern is passed over, and reported: nobody's typing error stops a snapshot.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
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
NO_PATTERN = "no pattern"
"""What is reported of a line that is none."""


def excludes(root: Path) -> Excludes:
    """Without an ignore file only directories whose last name is a default's are looked at."""
    lines = _lines(root / IGNORE_FILE)
    if not lines:
        return Excludes(looks_at_files=False, names=_is_default)
    spec, void = _compiled(lines)
    reported = tuple((f"{IGNORE_FILE}:{number}", NO_PATTERN) for number in void)
    return Excludes(looks_at_files=True, names=lambda path, is_dir: _is_in(spec, path, is_dir), reported=reported)


def _lines(file: Path) -> list[str]:
    """Of a regular file: the writer of a FIFO of that name may never come."""
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return []
            return opened.read(MAX_IGNORE_BYTES).decode("utf-8-sig", "surrogateescape").splitlines()
    except OSError:
        return []


def _compiled(lines: Iterable[str]) -> tuple[GitIgnoreSpec, list[int]]:
    """The defaults and these; and the numbers of the lines that are no patterns."""
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    patterns, void = [GitIgnoreSpecPattern(line) for line in DEFAULTS], []
    for number, line in enumerate(lines, 1):
        try:
            patterns.append(GitIgnoreSpecPattern(line))
        except (ValueError, re.error):
            void.append(number)
    return GitIgnoreSpec(patterns), void


@cache
def _defaults() -> GitIgnoreSpec:
    """Loaded when a name may be one of them, and not before."""
    return _compiled(())[0]


def _is_default(path: bytes, is_dir: bool) -> bool:
    return is_dir and path.rpartition(b"/")[2] in LAST_NAMES and _is_in(_defaults(), path, is_dir)


def _is_in(spec: GitIgnoreSpec, path: bytes, is_dir: bool) -> bool:
    return spec.match_file(os.fsdecode(path) + ("/" if is_dir else ""))
