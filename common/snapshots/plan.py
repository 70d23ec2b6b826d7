"""What a restore has to do to a tree: compares the manifest with what is there, and changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from common.snapshots.chunk import SUM_BYTES
from common.snapshots.manifest import Entry, Manifest, Pack
from common.snapshots.tree import OWNER_MAY_ALL, Tree

IS_KIND = {"dir": stat.S_ISDIR, "file": stat.S_ISREG, "hardlink": stat.S_ISREG, "symlink": stat.S_ISLNK}


@dataclass
class Plan:
    """Lists in the order in which they are worked off."""

    prefix: str
    unlock: list[bytes] = field(default_factory=list)
    """Directories that their owner may not change as they are."""
    extra: list[tuple[bytes, bool]] = field(default_factory=list)
    """(path, is it a directory?) to be removed, content before its directory."""
    new_dirs: list[bytes] = field(default_factory=list)
    files: list[Entry] = field(default_factory=list)
    """To be written anew."""
    undressed: list[Entry] = field(default_factory=list)
    """Files with the right content and another mode or time."""
    hardlinks: list[Entry] = field(default_factory=list)
    symlinks: list[Entry] = field(default_factory=list)
    dirs: list[Entry] = field(default_factory=list)
    packs: dict[str, Pack] = field(default_factory=dict)
    """Those that `files` need."""
    chunks: dict[str, list[str]] = field(default_factory=dict)
    """Of each such pack, the chunks that `files` need, in the pack's order."""

    @property
    def bytes_to_write(self) -> int:
        return sum(entry.data_bytes for entry in self.files)

    @property
    def new_names(self) -> int:
        return len(self.new_dirs) + len(self.files) + len(self.symlinks)


def compare(manifest: Manifest, tree: Tree) -> Plan:
    """Turns what is there into the manifest's tree; files of the right size are read to see what they hold."""
    plan = Plan(manifest.prefix)
    there = tree.listing()
    wanted = {entry.path: entry for entry in manifest.entries}
    plan.unlock = [b"", *_locked(there)]
    for path, status in reversed(there.items()):
        if path not in wanted or not IS_KIND[wanted[path].kind](status.st_mode):
            plan.extra.append((path, stat.S_ISDIR(status.st_mode)))
    for path, _ in plan.extra:
        del there[path]
    _plan_files(plan, manifest, tree, there)
    for entry in manifest.entries:
        if entry.kind == "dir":
            plan.dirs.append(entry)
            if entry.path not in there and entry.path:
                plan.new_dirs.append(entry.path)
        elif entry.kind == "symlink" and not _is_right_symlink(entry, tree, there.get(entry.path)):
            if entry.path in there:
                plan.extra.append((entry.path, False))
            plan.symlinks.append(entry)
    _plan_packs(plan, manifest)
    return plan


def _plan_files(plan: Plan, manifest: Manifest, tree: Tree, there: dict[bytes, os.stat_result]) -> None:
    """A file and its further names are right together, or it is written anew and all of them linked anew."""
    links: dict[bytes, list[Entry]] = {}
    for entry in manifest.entries:
        if entry.kind == "hardlink":
            links.setdefault(entry.target, []).append(entry)
    for entry in manifest.entries:
        if entry.kind != "file":
            continue
        others = links.get(entry.path, [])
        status = there.get(entry.path)
        if status and _is_one_file(status, [there.get(other.path) for other in others]) and _holds(tree, entry, status):
            if (stat.S_IMODE(status.st_mode), status.st_mtime_ns) != (entry.mode, entry.mtime_ns):
                plan.undressed.append(entry)
            continue
        plan.files.append(entry)
        plan.hardlinks += others
        plan.extra += [(other.path, False) for other in others if other.path in there]


def _is_one_file(status: os.stat_result, others: list[os.stat_result | None]) -> bool:
    same = all(other and (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino) for other in others)
    return same and status.st_nlink == 1 + len(others)


def _holds(tree: Tree, entry: Entry, status: os.stat_result) -> bool:
    """The content decides: size and time alone may lie, as after a copy that kept the time."""

    def is_same(pieces: Iterator[bytes]) -> bool:
        content = blake3()
        for piece in pieces:
            content.update(piece)
        return content.hexdigest(length=SUM_BYTES) == entry.sum

    return status.st_size == entry.size and tree.has_content(entry, is_same)


def _is_right_symlink(entry: Entry, tree: Tree, status: os.stat_result | None) -> bool:
    return status is not None and status.st_mtime_ns == entry.mtime_ns and tree.read_symlink(entry) == entry.target


def _locked(there: dict[bytes, os.stat_result]) -> list[bytes]:
    return [path for path, status in there.items() if _is_locked_dir(status.st_mode)]


def _is_locked_dir(mode: int) -> bool:
    return stat.S_ISDIR(mode) and mode & OWNER_MAY_ALL != OWNER_MAY_ALL


def _plan_packs(plan: Plan, manifest: Manifest) -> None:
    needed = {extent.chunk for entry in plan.files for extent in entry.extents}
    for name in sorted(needed, key=lambda name: manifest.chunks[name].offset):
        plan.chunks.setdefault(manifest.chunks[name].pack, []).append(name)
    plan.packs = {name: pack for name, pack in manifest.packs.items() if name in plan.chunks}
