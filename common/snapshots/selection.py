"""A part of a snapshot: some of its names, with the way to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from common.snapshots.manifest import Entry, Manifest


def lacking(manifest: Manifest, names: Iterable[bytes]) -> list[bytes]:
    """Those that the snapshot does not have."""
    held = {entry.path for entry in manifest.entries}
    return [name for name in names if name not in held]


def selected(manifest: Manifest, names: Collection[bytes]) -> Manifest:
    """The manifest of these names alone, of what lies below them, and of the directories above.

    Of a file whose first name is not among them the next one takes its place.
    """
    ways, taken = ways_to(names) | {b""}, set[bytes]()
    for entry in manifest.entries:  # a directory stands before what it holds
        if entry.path in names or entry.parent in taken:
            taken.add(entry.path)
    kept = [entry for entry in manifest.entries if entry.path in taken or entry.path in ways]
    return replace(manifest, entries=tuple(_linked_anew(kept, manifest)))


def _linked_anew(kept: list[Entry], manifest: Manifest) -> Iterator[Entry]:
    """Each further name of a file stands for a file that is among them."""
    held = {entry.path for entry in kept}
    orphaned = {entry.target for entry in kept if entry.kind == "hardlink"} - held
    files = {entry.path: entry for entry in manifest.entries if entry.path in orphaned}
    heirs: dict[bytes, bytes] = {}
    for entry in kept:
        if entry.kind != "hardlink" or entry.target in held:
            yield entry
        elif entry.target in heirs:
            yield entry._replace(target=heirs[entry.target])
        else:
            heirs[entry.target] = entry.path
            yield files[entry.target]._replace(path=entry.path)


def ways_to(names: Iterable[bytes]) -> set[bytes]:
    """The directories that they lie in."""
    return {above for name in names for above in _above(name)}


def _above(name: bytes) -> Iterator[bytes]:
    while name := name.rpartition(b"/")[0]:
        yield name
