"""Makes a workspace byte for byte what a snapshot holds, in the order in which a person wants it back.

Packs stream from the store to workers, which prove each chunk before they write it. A file appears under its name when
it is whole, what the snapshot does not have goes last of all, and whatever kills it, running it again ends in the same
tree: what is right already is neither fetched nor written again.

A damaged snapshot changes nothing. Where files are only added (an empty tree, or what a killed restore left) it
streams, and what came before the damage goes again; where a file that is there would be replaced, every chunk is proven
before the first is written, which costs a second reading of the packs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import DiskFull, SnapshotDamaged, SnapshotError, SnapshotRefused, is_full
from common.snapshots.fetching import Fetching, Line, line
from common.snapshots.ignore import excludes
from common.snapshots.keys import keys_of
from common.snapshots.limits import MAX_CHUNK_BYTES
from common.snapshots.manifest import Manifest
from common.snapshots.mapped import write_back
from common.snapshots.packing import Counts, Progress
from common.snapshots.plan import Plan, compare, older_in
from common.snapshots.scan import Stamp
from common.snapshots.seal import unseal
from common.snapshots.stage import STAGE_BYTES
from common.snapshots.state import State
from common.snapshots.transfer import Endpoint
from common.snapshots.tree import Tree, opened, part_of
from common.snapshots.wire import Wire

SPARE_BYTES = 64 << 20
"""Left free on each disk."""
SPARE_INODES = 1000
UNKNOWN: Stamp = (0, 0, 0, 0)

Wanted = Callable[[], Iterable[bytes]]
"""Paths that somebody waits for, asked for whenever the next pack is chosen."""

assert MAX_CHUNK_BYTES < SPARE_BYTES


@dataclass(frozen=True)
class Restored:
    """What was done to the workspace."""

    manifest: Manifest
    files: int
    bytes: int
    files_written: int
    bytes_written: int
    bytes_fetched: int
    removed: int
    """Names that the machine held and the snapshot does not."""
    seconds: float


def fetch_manifest(
    key: str, *, prefix: str, instance_key: bytes, root: Path, state_dir: Path, endpoint: Endpoint
) -> Manifest:
    """The manifest at `key`: the copy remembered here if it is that one, else from the store (on a host: no boto3)."""
    state = State(state_dir, root)
    try:
        manifest = unseal(state.last(), key, instance_key)
    except SnapshotRefused:
        with closing(Wire(endpoint)) as wire:
            sealed = wire.get(key)
        manifest = unseal(sealed, key, instance_key)
        state.keep_last(sealed)
    if manifest.prefix != prefix:
        raise SnapshotRefused(f"{key} is a snapshot of {manifest.prefix}, not of {prefix}")
    return manifest


@dataclass(frozen=True)
class Begun:
    """A restore of which all is done that can be without knowing the snapshot."""

    root: Path
    state: State
    endpoint: Endpoint
    line: Line


@contextmanager
def begun(root: Path, state: State, endpoint: Endpoint) -> Iterator[Begun]:
    """s5cmd waits for what will be asked of it."""
    with _translated():
        state.sweep()
        with line(state, endpoint) as way:
            yield Begun(root, state, endpoint, way)


def restore(
    manifest_key: str,
    root: Path,
    *,
    prefix: str,
    instance_key: bytes,
    state_dir: Path,
    endpoint: Endpoint,
    clock: Callable[[], float],
    progress: Progress = lambda _done, _total, _what: None,
    wanted: Wanted = lambda: (),
    counts: Counts | None = None,
    manifest: Manifest | None = None,
    keeps_newer: bool = False,
) -> Restored:
    """Root becomes the snapshot; what it held besides is removed, but not what `excludes` of it names: that is in no
    snapshot. `clock` gives monotonic seconds.

    `keeps_newer`: a name that is there with the snapshot's time or a later one stays, and nothing is removed. That is
    for two copies of one machine's files, each of which may hold what the other has not got.

    `manifest` is the one at `manifest_key` for who has it already; else it is fetched.

    `SnapshotDamaged` (with the chunk) and `SnapshotRefused` leave the tree as it was. `DiskFull` and `ObjectStoreError`
    after the first write leave one that another run completes: each name as it was or as it will be.
    """
    started = clock()
    with begun(root, State(state_dir, root), endpoint) as begin:
        manifest = manifest or fetch_manifest(
            manifest_key, prefix=prefix, instance_key=instance_key, root=root, state_dir=state_dir, endpoint=endpoint
        )
        return finish(begin, manifest, prefix, instance_key, clock, started, progress, wanted, counts, keeps_newer)


def finish(
    begun: Begun,
    manifest: Manifest,
    prefix: str,
    instance_key: bytes,
    clock: Callable[[], float],
    started: float,
    progress: Progress,
    wanted: Wanted = lambda: (),
    counts: Counts | None = None,
    keeps_newer: bool = False,
) -> Restored:
    """The rest of a restore that was begun when the clock stood at `started`; as `restore`."""
    if manifest.prefix != prefix:
        raise SnapshotRefused(f"{manifest.key} is a snapshot of {manifest.prefix}, not of {prefix}")
    root, state = begun.root, begun.state
    root.mkdir(parents=True, exist_ok=True)
    with opened(bytes(root)) as tree:
        wants = older_in(tree, manifest) if keeps_newer else manifest
        plan = compare(wants, tree, keys_of(instance_key), excludes(root))
        if keeps_newer:
            plan.keep_what_is_there()
        _require_room(plan, root, begun.line.stage)
        fetching = Fetching(
            manifest, plan, root, tree, begun.line, begun.endpoint, instance_key, progress, wanted, counts or Counts()
        )  # fmt: skip
        if not plan.adds_only:
            fetching.prove()
        state.forget()
        with _taken_back_if_damaged(plan, tree):
            stamps = fetching.run(lambda: _prepare(plan, tree))
        _finish(plan, tree)
        _flush(root)
        if not keeps_newer:
            _remember(state, manifest, tree, plan, stamps)
    return Restored(
        manifest=manifest,
        files=manifest.files,
        bytes=manifest.bytes,
        files_written=len(plan.files),
        bytes_written=plan.bytes_to_write,
        bytes_fetched=sum(pack.size for pack in plan.packs.values()),
        removed=len(plan.extra) + len(plan.in_the_way),
        seconds=clock() - started,
    )


@contextmanager
def _taken_back_if_damaged(plan: Plan, tree: Tree) -> Iterator[None]:
    """What was added goes again. A tree in which files are replaced was proven; what rots after that leaves proven
    names only."""
    try:
        yield
    except SnapshotDamaged:
        if plan.adds_only:
            for file in plan.files:
                tree.remove(file.entry.path, is_dir=False)
                if file.base != "part":
                    tree.remove(part_of(file.entry.path), is_dir=False)
            for path in reversed(plan.new_dirs):
                with suppress(OSError):  # somebody put something into it meanwhile
                    tree.remove(path, is_dir=True)
            for path, (mode, mtime_ns) in reversed(plan.dirs_there.items()):
                tree.give_back(path, mode, mtime_ns)
        raise


def _prepare(plan: Plan, tree: Tree) -> dict[bytes, Stamp]:
    """Directories, files without content, and a place for each that grows; only what is in the way goes now."""
    for path in plan.unlock:
        tree.unlock(path)
    for path, is_dir in plan.in_the_way:
        tree.remove(path, is_dir=is_dir)
    for path in plan.new_dirs:
        tree.make_dir(path)
    stamps: dict[bytes, Stamp] = {}
    for file in plan.files:
        if not file.entry.extents:
            stamps[file.entry.path] = tree.write(file.entry, ())
        elif not file.at_once:
            tree.begin_part(file.entry, from_old=file.base == "old", has_part=file.base == "part")
            if not file.extents:  # a killed restore had all of it
                stamps[file.entry.path] = tree.finish_part(file.entry)
    return stamps


def _finish(plan: Plan, tree: Tree) -> None:
    """All content is in place: links, then what is too many, and times at the very end, from the leaves up."""
    for entry in plan.undressed:
        tree.dress(entry)
    for entry in plan.hardlinks:
        tree.make_hardlink(entry)
    for entry in plan.symlinks:
        tree.make_symlink(entry)
    for path, is_dir in plan.extra:
        tree.remove(path, is_dir=is_dir)
    for entry in reversed(plan.dirs):
        tree.dress(entry)


def _remember(state: State, manifest: Manifest, tree: Tree, plan: Plan, stamps: dict[bytes, Stamp]) -> None:
    """The next snapshot of this tree need not read what was just written, or found to be right."""
    clock_ns = state.file_clock_ns()
    linked = {entry.target for entry in plan.hardlinks}
    known = {path: stamp for path, stamp in stamps.items() if path not in linked}
    rows = [
        known.get(entry.path) or tree.stamp(entry.path) if entry.kind == "file" and not entry.torn else UNKNOWN
        for entry in manifest.entries
    ]
    state.remember(manifest, [row[2] for row in rows], [row[3] for row in rows], clock_ns)


def _require_room(plan: Plan, root: Path, stage: Path) -> None:
    """Raises `DiskFull` unless the packs under way and the files that are to be written fit, each on its disk."""
    needs: dict[int, tuple[Path, int, int]] = {}
    to_stage = min(STAGE_BYTES, sum(pack.size for pack in plan.packs.values()))
    for place, size, names in ((stage, to_stage, len(plan.packs)), (root, plan.bytes_to_write, plan.new_names)):
        device = place.stat().st_dev
        _, other_size, other_names = needs.get(device, (place, 0, 0))
        needs[device] = (place, size + other_size, names + other_names)
    for place, size, names in needs.values():
        disk = os.statvfs(place)
        free = disk.f_bavail * disk.f_frsize
        if size + SPARE_BYTES > free:
            raise DiskFull(f"{place} has {free} bytes free; the restore needs {size} and {SPARE_BYTES} to spare")
        if disk.f_files and names + SPARE_INODES > disk.f_favail:
            raise DiskFull(f"{place} has room for {disk.f_favail} more files; the restore needs {names}")


def _flush(root: Path) -> None:
    """On disk before we say so: one syncfs for all, which also tells of failed writes."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write_back(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(f"the disk filled up while restoring: {error}") from None
        raise SnapshotError(f"the restore stopped: {error}") from error
