"""What of a workspace is not as a snapshot has it, told by the walk alone: no content is read."""

from __future__ import annotations

from pathlib import Path

from common.snapshots.ignore import excludes
from common.snapshots.manifest import Entry, Manifest
from common.snapshots.scan import Excludes, Found, scan
from common.snapshots.selection import ways_to


def changed_since(root: Path, before: Manifest | None, since_ns: int | None) -> frozenset[bytes]:
    """Names of files and symlinks that `before` lacks or has with another size, time or target.

    `since_ns`: those that have not been touched from then on (ctime, which no user can set back) are not among them.
    None of either = everything. Raises `SnapshotError` for what cannot be read.
    """
    known = {entry.path: entry for entry in before.entries} if before else {}
    names: set[bytes] = set()
    for found in scan(bytes(root), excludes(root)).found:
        is_old = since_ns is not None and found.stamp[2] < since_ns
        if found.kind != "dir" and not is_old and not _is_as_in(known.get(found.path), found):
            names.update((found.path, *found.others))
    return frozenset(names)


def _is_as_in(entry: Entry | None, found: Found) -> bool:
    if entry is None or entry.kind != found.kind:
        return False
    if found.kind == "symlink":
        return entry.target == found.target
    return (entry.size, entry.mtime_ns) == (found.stamp[0], found.mtime_ns)


def nothing_but(names: frozenset[bytes]) -> Excludes:
    """Everything else is left out, but for the directories that these names lie in."""
    ways = ways_to(names)
    return Excludes(
        looks_at_files=True, names=lambda path, is_dir: path not in names and not (is_dir and path in ways)
    )  # fmt: skip
