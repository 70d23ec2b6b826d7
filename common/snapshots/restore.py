"""Makes a workspace byte for byte what a snapshot holds: fetch all, prove all, and only then change anything.

Whatever kills it, running it again ends in the same tree: a file is right only when its content is.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from common.errors import DiskFull, ObjectMissing, SnapshotDamaged, SnapshotError, SnapshotRefused
from common.snapshots.manifest import Extent, Manifest, pack_key
from common.snapshots.pack import PackReader, is_whole
from common.snapshots.plan import Plan, compare
from common.snapshots.scan import stamp
from common.snapshots.seal import unseal
from common.snapshots.state import State
from common.snapshots.take import MANIFEST_FILE, Progress
from common.snapshots.transfer import WORKERS, Endpoint, Transfer, transfer
from common.snapshots.tree import Tree

SPARE_BYTES = 64 << 20
"""Left free on each disk."""
SPARE_INODES = 1000


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
        with transfer(endpoint, state.stage) as move:
            move.get(key, MANIFEST_FILE)
            list(move.finished())
        manifest = unseal((state.stage / MANIFEST_FILE).read_bytes(), key, instance_key)
        state.keep_last((state.stage / MANIFEST_FILE).read_bytes())
    if manifest.prefix != prefix:
        raise SnapshotRefused(f"{key} is a snapshot of {manifest.prefix}, not of {prefix}")
    return manifest


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
) -> Restored:
    """Root becomes the snapshot; what it held besides is removed. `clock` gives monotonic seconds.

    Before anything is changed it raises `SnapshotDamaged` (with the chunk), `SnapshotRefused`, `DiskFull` or
    `ObjectStoreError`. A `SnapshotError` or `DiskFull` later leaves a tree that another run completes.
    """
    started = clock()
    state = State(state_dir, root)
    manifest = fetch_manifest(
        manifest_key, prefix=prefix, instance_key=instance_key, root=root, state_dir=state_dir, endpoint=endpoint
    )
    root.mkdir(parents=True, exist_ok=True)
    with _translated(), closing(PackReader(state.stage, manifest.chunks)) as packs, _opened(root) as tree:
        plan = compare(manifest, tree)
        state.sweep(keep=frozenset(plan.packs))
        _require_room(plan, root, state.stage)
        fetched = _Fetching(plan, state.stage, packs, progress).run(endpoint)
        state.forget()
        _apply(plan, tree, packs, progress)
        _flush(root)
        _remember(state, manifest, tree)
    state.sweep()
    return Restored(
        manifest=manifest,
        files=manifest.files,
        bytes=manifest.bytes,
        files_written=len(plan.files),
        bytes_written=plan.bytes_to_write,
        bytes_fetched=fetched,
        removed=len(plan.extra),
        seconds=clock() - started,
    )


class _Fetching:
    """Packs from the store to the stage, each chunk that is needed proven as soon as its pack is here."""

    def __init__(self, plan: Plan, stage: Path, packs: PackReader, progress: Progress) -> None:
        self._plan = plan
        self._stage = stage
        self._packs = packs
        self._progress = progress
        self._done = 0
        self._total = sum(pack.size for pack in plan.packs.values())

    def run(self, endpoint: Endpoint) -> int:
        """The bytes that had to be fetched: an interrupted restore's packs are used again."""
        here = {name for name, pack in self._plan.packs.items() if is_whole(self._stage / name, name, pack)}
        missing = [name for name in self._plan.packs if name not in here]
        for name in here:
            self._prove(name)
        if missing:
            with transfer(endpoint, self._stage) as move:
                self._fetch(missing, move)
        return sum(self._plan.packs[name].size for name in missing)

    def _fetch(self, names: list[str], move: Transfer) -> None:
        try:
            for name in names:
                move.get(pack_key(self._plan.prefix, name), name)
                for done in move.finished(leave=2 * WORKERS):
                    self._prove(done)
            for done in move.finished():
                self._prove(done)
        except ObjectMissing as error:
            pack = next(name for name in names if name in str(error))
            raise SnapshotDamaged(f"pack {pack} is not in the store", self._plan.chunks[pack][0]) from None

    def _prove(self, pack: str) -> None:
        for chunk in self._plan.chunks[pack]:
            self._packs.decode(chunk)
        self._done += self._plan.packs[pack].size
        self._progress(self._done, self._total, "download")


def _apply(plan: Plan, tree: Tree, packs: PackReader, progress: Progress) -> None:
    """Old names away, then directories, files, and links last of all; times at the very end, from the leaves up."""

    def read(extent: Extent) -> memoryview:
        return memoryview(packs.chunk(extent.chunk))[extent.start : extent.start + extent.length]

    for path in plan.unlock:
        tree.unlock(path)
    for path, is_dir in plan.extra:
        tree.remove(path, is_dir=is_dir)
    for path in plan.new_dirs:
        tree.make_dir(path)
    done, total = 0, plan.bytes_to_write
    for parent, entries in groupby(plan.files, key=lambda entry: entry.parent):
        for entry in tree.write_files(parent, list(entries), read):
            done += entry.data_bytes
            progress(done, total, "write")
    for entry in plan.undressed:
        tree.dress(entry)
    for entry in plan.hardlinks:
        tree.make_hardlink(entry)
    for entry in plan.symlinks:
        tree.make_symlink(entry)
    for entry in reversed(plan.dirs):
        tree.dress(entry)


def _remember(state: State, manifest: Manifest, tree: Tree) -> None:
    """The next snapshot of this tree need not read what was just written."""
    clock_ns = state.file_clock_ns()
    listing = tree.listing()
    files = (entry.path for entry in manifest.entries if entry.kind == "file" and not entry.torn)
    state.remember(manifest.key, {path: stamp(listing[path]) for path in files if path in listing}, clock_ns)


def _require_room(plan: Plan, root: Path, stage: Path) -> None:
    """Raises `DiskFull` unless the packs and the files that are to be written fit, each on its disk."""
    needs: dict[int, tuple[Path, int, int]] = {}
    to_stage = sum(pack.size for name, pack in plan.packs.items() if not (stage / name).exists())
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
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


@contextmanager
def _opened(root: Path) -> Iterator[Tree]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Tree(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"the disk filled up while restoring: {error}") from None
        raise SnapshotError(f"the restore stopped: {error}") from error
