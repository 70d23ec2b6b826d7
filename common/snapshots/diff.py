"""What lies between two snapshots, to tell a person what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from common.snapshots.manifest import Entry, Manifest, printable

MAX_NAMED = 1000
"""Names listed of each kind; the counts are always whole."""


@dataclass(frozen=True)
class Names:
    """`count` names, of which the first MAX_NAMED are listed."""

    count: int
    listed: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """In terms of content: another mode or time alone is no change."""

    added: Names
    changed: Names
    removed: Names


def diff(older: Manifest, newer: Manifest) -> Difference:
    before, after = _contents(older), _contents(newer)
    return Difference(
        added=_names([path for path in after if path not in before]),
        changed=_names([path for path in after if path in before and after[path] != before[path]]),
        removed=_names([path for path in before if path not in after]),
    )


def _contents(manifest: Manifest) -> dict[bytes, tuple[object, ...]]:
    """A further name of a file counts as that file: which of its names is the first is no difference."""
    by_path = {entry.path: entry for entry in manifest.entries}
    return {
        path: _content(by_path[entry.target] if entry.kind == "hardlink" else entry) for path, entry in by_path.items()
    }


def _content(entry: Entry) -> tuple[object, ...]:
    return (entry.kind, entry.size, entry.sum, entry.target)


def _names(paths: list[bytes]) -> Names:
    return Names(len(paths), tuple(printable(path) for path in sorted(paths)[:MAX_NAMED]))
