"""What a restore has to do to a tree: compares the manifest with what is there, and changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from blake3 import blake3

from common.snapshots.chunk import SMALL_FILE_BYTES, SUM_BYTES
from common.snapshots.keys import Keys
from common.snapshots.limits import MTIME_NS, PART_PREFIX
from common.snapshots.manifest import Entry, Extent, Manifest, Pack
from common.snapshots.scan import NOTHING, Excludes
from common.snapshots.tree import OWNER_MAY_ALL, Tree, join, part_of

IS_KIND = {"dir": stat.S_ISDIR, "file": stat.S_ISREG, "hardlink": stat.S_ISREG, "symlink": stat.S_ISLNK}

Base = Literal["new", "part", "old"]
"""What a file is made from: nothing, what a killed restore left of it, or the content it had."""


@dataclass(slots=True)
class FilePlan:
    """A file to be written. `extents` are those whose bytes are not there yet."""

    entry: Entry
    base: Base
    extents: Sequence[Extent]
    at_once: bool = field(init=False)
    """Written in one go by whoever has its chunk; others grow under a name of their own until they are whole."""

    def __post_init__(self) -> None:
        chunks = len(self.extents) if len(self.extents) < 2 else len({extent.chunk for extent in self.extents})
        self.at_once = self.base == "new" and chunks == 1


@dataclass
class Plan:
    """Lists in the order in which they are worked off."""

    prefix: str
    adds_only: bool = False
    """Until all content is in place nothing that is there is changed: so it can be taken back."""
    dirs_there: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """(mode, mtime_ns) of the directories that are there, to be given back to them."""
    unlock: list[bytes] = field(default_factory=list)
    """Directories that their owner may not change as they are."""
    in_the_way: list[tuple[bytes, bool]] = field(default_factory=list)
    """(path, is it a directory?) of another kind than the manifest's, content before its directory."""
    extra: list[tuple[bytes, bool]] = field(default_factory=list)
    """What the manifest does not have; it goes last, when all else is in place."""
    new_dirs: list[bytes] = field(default_factory=list)
    files: list[FilePlan] = field(default_factory=list)
    undressed: list[Entry] = field(default_factory=list)
    """Files with the right content and another mode, owner or time."""
    hardlinks: list[Entry] = field(default_factory=list)
    symlinks: list[Entry] = field(default_factory=list)
    dirs: list[Entry] = field(default_factory=list)
    packs: dict[str, Pack] = field(default_factory=dict)
    """Those that `files` need, the most wanted first."""
    with_small: set[str] = field(default_factory=set)
    """Those of them that hold small files: they come before all others."""
    chunks: dict[str, list[str]] = field(default_factory=dict)
    """Of each such pack, the chunks that `files` need, in the pack's order."""
    targets: dict[str, list[tuple[int, Sequence[Extent]]]] = field(default_factory=dict)
    """Of each such chunk, who needs it: the file's number, and where its bytes go."""

    def keep_what_is_there(self) -> None:
        """Nothing is removed, and no file bears its name before it is whole: half of one would pass for a newer one."""
        self.extra.clear()
        for file in self.files:
            file.at_once = False

    @property
    def bytes_to_write(self) -> int:
        return sum(extent.length for file in self.files for extent in file.extents)

    @property
    def new_names(self) -> int:
        return len(self.new_dirs) + len(self.files) + len(self.symlinks)


def compare(manifest: Manifest, tree: Tree, keys: Keys, leaves_out: Excludes = NOTHING) -> Plan:
    """Turns what is there into the manifest's tree; files of the right size are read to see what they hold.

    What a snapshot of the tree would leave out stays: no snapshot has it.
    """
    there = tree.listing()
    plan = Plan(manifest.prefix)
    for path, status in [(b"", tree.status()), *there.items()]:
        if stat.S_ISDIR(status.st_mode):
            plan.dirs_there[path] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    wanted = {entry.path: entry for entry in manifest.entries}
    plan.unlock = [b"", *(path for path, status in there.items() if _is_locked_dir(status.st_mode))]
    _plan_removals(plan, wanted, there, _kept(wanted, there, leaves_out))
    _Files(plan, manifest, tree, there, keys).all()
    plan.adds_only = not plan.in_the_way and all(file.entry.path not in there for file in plan.files)
    for entry in manifest.entries:
        if entry.kind == "dir":
            plan.dirs.append(entry)
            if entry.path not in there and entry.path:
                plan.new_dirs.append(entry.path)
        elif entry.kind == "symlink" and not _is_right_symlink(entry, tree, there.get(entry.path)):
            plan.symlinks.append(entry)
    _plan_packs(plan, manifest)
    return plan


def older_in(tree: Tree, manifest: Manifest) -> Manifest:
    """The manifest without the names that the tree holds as new as it, or as something else."""
    there = tree.listing()

    def is_older(entry: Entry) -> bool:
        status = there.get(entry.path)
        if status is None or entry.kind == "dir":
            return status is None or stat.S_ISDIR(status.st_mode)
        return IS_KIND[entry.kind](status.st_mode) and status.st_mtime_ns < entry.mtime_ns

    kept = {entry.path for entry in manifest.entries if is_older(entry)}
    entries = [e for e in manifest.entries if e.path in kept and (e.kind != "hardlink" or e.target in kept)]
    return replace(manifest, entries=tuple(entries))


def _kept(wanted: dict[bytes, Entry], there: dict[bytes, os.stat_result], leaves_out: Excludes) -> set[bytes]:
    """Of the names that the manifest does not have, those that are left out, and the directories that hold them."""
    kept: set[bytes] = set()
    for path, status in there.items():
        if path not in wanted:
            parent, is_dir = path.rpartition(b"/")[0], stat.S_ISDIR(status.st_mode)
            if parent in kept or leaves_out.names(path, is_dir):
                kept.add(path)
    for path in list(kept):
        while (path := path.rpartition(b"/")[0]) and path not in kept:
            kept.add(path)
    return kept


def _plan_removals(
    plan: Plan, wanted: dict[bytes, Entry], there: dict[bytes, os.stat_result], kept: set[bytes]
) -> None:
    """What lies below something in the way goes with it; the rest waits for the end."""
    blocked: set[bytes] = set()
    for path, status in there.items():
        is_blocked = path.rpartition(b"/")[0] in blocked if path else False
        if is_blocked or (path in wanted and not IS_KIND[wanted[path].kind](status.st_mode)):
            blocked.add(path)
    for path, status in reversed(there.items()):
        if path in blocked:
            plan.in_the_way.append((path, stat.S_ISDIR(status.st_mode)))
        elif path not in wanted and path not in kept:
            plan.extra.append((path, stat.S_ISDIR(status.st_mode)))
    for path, _ in plan.in_the_way:
        del there[path]


class _Files:
    """Which files are right, which need some of their bytes, which need all."""

    def __init__(
        self, plan: Plan, manifest: Manifest, tree: Tree, there: dict[bytes, os.stat_result], keys: Keys
    ) -> None:
        self._plan = plan
        self._manifest = manifest
        self._tree = tree
        self._there = there
        self._keys = keys
        self._has_parts = any(path.rpartition(b"/")[2].startswith(PART_PREFIX) for path in there)

    def all(self) -> None:
        """A file and those of its further names that are there are right together, and the others are linked to it.

        Or it is written anew, and all of them are linked anew.
        """
        links: dict[bytes, list[Entry]] = {}
        for entry in self._manifest.entries:
            if entry.kind == "hardlink":
                links.setdefault(entry.target, []).append(entry)
        for entry in self._manifest.entries:
            if entry.kind == "file":
                self._one(entry, links.get(entry.path, []))

    def _one(self, entry: Entry, others: list[Entry]) -> None:
        status = self._there.get(entry.path)
        alone = status is not None and _is_one_file(status, [self._there.get(other.path) for other in others])
        missing = self._missing(entry, entry.path, status) if status and alone else None
        if status and missing == []:
            if not _is_dressed(entry, status):
                self._plan.undressed.append(entry)
            self._plan.hardlinks += [other for other in others if other.path not in self._there]
            return
        self._plan.files.append(self._to_write(entry, status, missing, reusable=alone and not others))
        self._plan.hardlinks += others

    def _to_write(
        self, entry: Entry, status: os.stat_result | None, missing: list[Extent] | None, *, reusable: bool
    ) -> FilePlan:
        """From what a killed restore left, else from the old content where that saves something.

        What one of another snapshot left may have bytes where this file has holes: they would stay.
        """
        part = part_of(entry.path) if self._has_parts else b""
        left = self._there.get(part) if part else None
        if left and stat.S_ISREG(left.st_mode) and self._keeps_holes(entry, part):
            self._plan.extra = [extra for extra in self._plan.extra if extra[0] != part]
            return FilePlan(entry, "part", self._wrong(entry, part))
        if reusable and missing and len(missing) < len(entry.extents) and status and not entry.is_sparse:
            return FilePlan(entry, "old", missing)
        return FilePlan(entry, "new", entry.extents)

    def _missing(self, entry: Entry, path: bytes, status: os.stat_result) -> list[Extent] | None:
        """Extents that the file does not hold; [] = it is right; None = all of it is to be written."""
        if not self._checks_by_chunk(entry):
            return [] if status.st_size == entry.size and self._has_sum(entry) else None
        if not entry.size:
            return None if status.st_size else []
        if status.st_size == entry.size and not self._keeps_holes(entry, path):
            return None
        wrong = self._wrong(entry, path)
        return wrong if wrong or status.st_size == entry.size else list(entry.extents) or None

    def _keeps_holes(self, entry: Entry, path: bytes) -> bool:
        return not entry.is_sparse or self._tree.keeps_holes_of(entry, path)

    def _checks_by_chunk(self, entry: Entry) -> bool:
        """Its extents are whole chunks, whose names tell what must stand there."""
        chunks = self._manifest.chunks
        return all(extent.start == 0 and extent.length == chunks[extent.chunk].plain for extent in entry.extents)

    def _wrong(self, entry: Entry, path: bytes) -> list[Extent]:
        if not self._checks_by_chunk(entry):
            return list(entry.extents)
        pieces = self._tree.pieces(path, entry.extents)
        return [extent for extent, piece in zip(entry.extents, pieces, strict=True) if not self._is(extent, piece)]

    def _is(self, extent: Extent, piece: bytes) -> bool:
        salt = self._manifest.packs[self._manifest.chunks[extent.chunk].pack].salt
        name = blake3(piece, key=self._keys.chunk_id) if salt else blake3(piece)
        return len(piece) == extent.length and name.hexdigest() == extent.chunk

    def _has_sum(self, entry: Entry) -> bool:
        content = blake3()
        if not self._keeps_holes(entry, entry.path):
            return False
        for piece in self._tree.pieces(entry.path, entry.extents):
            content.update(piece)
        return content.hexdigest(length=SUM_BYTES) == entry.sum


def _is_one_file(status: os.stat_result, others: list[os.stat_result | None]) -> bool:
    """With all the names that it has, and none that the manifest does not know."""
    there = [other for other in others if other]
    same = all((other.st_dev, other.st_ino) == (status.st_dev, status.st_ino) for other in there)
    return same and status.st_nlink == 1 + len(there)


def _is_dressed(entry: Entry, status: os.stat_result) -> bool:
    owner = (status.st_uid, status.st_gid)
    owned = entry.uid < 0 or owner == (entry.uid, entry.gid) or os.geteuid() != 0
    return owned and (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (entry.mode, entry.mtime_ns)


def _is_right_symlink(entry: Entry, tree: Tree, status: os.stat_result | None) -> bool:
    return status is not None and status.st_mtime_ns == entry.mtime_ns and tree.read_symlink(entry) == entry.target


def _is_locked_dir(mode: int) -> bool:
    return stat.S_ISDIR(mode) and mode & OWNER_MAY_ALL != OWNER_MAY_ALL


def _plan_packs(plan: Plan, manifest: Manifest) -> None:
    """Packs of small files first, then those with some, then bulk; among equals what was used last: usable before it is
    whole."""
    newest: dict[str, int] = {}
    small_bytes: dict[str, int] = {}
    pack_of = {name: chunk.pack for name, chunk in manifest.chunks.items()}
    for number, file in enumerate(plan.files):
        mtime_ns, size = file.entry.mtime_ns, file.entry.size
        for chunk, extents in _by_chunk(file):
            plan.targets.setdefault(chunk, []).append((number, extents))
            pack = pack_of[chunk]
            if mtime_ns > newest.get(pack, -MTIME_NS - 1):
                newest[pack] = mtime_ns
            if size <= SMALL_FILE_BYTES:
                small_bytes[pack] = small_bytes.get(pack, 0) + size
    for chunk in sorted(plan.targets, key=lambda name: manifest.chunks[name].offset):
        plan.chunks.setdefault(manifest.chunks[chunk].pack, []).append(chunk)

    def is_mostly_large(pack: str) -> bool:
        return 2 * small_bytes.get(pack, 0) < sum(manifest.chunks[chunk].plain for chunk in plan.chunks[pack])

    order = sorted(plan.chunks, key=lambda pack: (pack not in small_bytes, is_mostly_large(pack), -newest[pack]))
    plan.packs = {name: manifest.packs[name] for name in order}
    plan.with_small = set(small_bytes)


def _by_chunk(file: FilePlan) -> Iterable[tuple[str, Sequence[Extent]]]:
    if file.at_once:
        return ((file.extents[0].chunk, file.extents),)
    found: dict[str, list[Extent]] = {}
    for extent in file.extents:
        found.setdefault(extent.chunk, []).append(extent)
    return found.items()


def packs_of(path: bytes, plan: Plan, manifest: Manifest) -> Iterable[str]:
    """What has to be fetched before that file, or all below that directory, is there."""
    wanted = (plan.files[number] for number in files_of(path, plan))
    return {manifest.chunks[extent.chunk].pack for file in wanted for extent in file.extents}


def files_of(path: bytes, plan: Plan) -> Iterator[int]:
    """The number of that file, or of all below that directory."""
    inside = join(path, b"")
    for number, file in enumerate(plan.files):
        if file.entry.path == path or file.entry.path.startswith(inside):
            yield number
