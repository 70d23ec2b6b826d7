"""Takes a snapshot: scan, read what changed, pack it, upload the packs, and last of all the manifest."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.domain.snapshot import Version
from common.errors import DiskFull, SnapshotError
from common.snapshots.chunk import FileReader
from common.snapshots.manifest import Chunk, Entry, Manifest, Pack, pack_key, printable
from common.snapshots.pack import PackWriter
from common.snapshots.scan import Scan, Stamp, scan
from common.snapshots.seal import seal
from common.snapshots.state import State
from common.snapshots.transfer import Endpoint, Transfer, transfer

MAX_STAGED_PACKS = 4
"""Packs on the local disk that are not uploaded yet: at most 144 MiB."""
MANIFEST_FILE = "manifest"

Progress = Callable[[int, int, str], None]
"""progress(done_bytes, total_bytes, what), `what` being read, upload, download, verify or write."""


@dataclass(frozen=True)
class Sent:
    """One object that this snapshot uploaded."""

    key: str
    size: int
    md5: str


@dataclass(frozen=True)
class Taken:
    """What was done. Nothing here is a proof: the control plane verifies for itself."""

    manifest: Manifest
    files: int
    bytes: int
    new_bytes: int
    """Read and not yet in the store."""
    stored_bytes: int
    """Uploaded, manifest included."""
    packs_new: tuple[Sent, ...]
    skipped: tuple[tuple[str, str], ...]
    """(name, kind) of FIFOs, sockets and devices, which no snapshot holds."""
    torn: tuple[str, ...]
    """Files that changed whenever they were read."""
    vanished: tuple[str, ...]
    """Files that were removed while the snapshot was taken; it does not hold them."""
    seconds: float

    @property
    def manifest_key(self) -> str:
        return self.manifest.key


def take(
    root: Path,
    *,
    prefix: str,
    instance_key: bytes,
    epoch: int,
    seq: int,
    taken_at: datetime,
    previous: Manifest | None,
    state_dir: Path,
    endpoint: Endpoint,
    clock: Callable[[], float],
    progress: Progress = lambda _done, _total, _what: None,
) -> Taken:
    """A snapshot of everything below root. `clock` gives monotonic seconds.

    `previous` must be of the same prefix, and its packs be kept in the store. Raises `SnapshotError` (a file cannot be
    read), `DiskFull` (no room to stage packs), `ObjectStoreError`; then there is no manifest, and trying again is safe.
    """
    started = clock()
    if previous and previous.prefix != prefix:
        raise SnapshotError(f"the snapshot before is of {previous.prefix}, not of {prefix}")
    state = State(state_dir, root)
    state.sweep()
    clock_ns = state.file_clock_ns()
    tree = scan(bytes(root))
    with _room(), transfer(endpoint, state.stage) as move:
        packing = _Packing(prefix, state.stage, move, previous)
        try:
            reading = _Reading(bytes(root), packing.writer, previous, state)
            reading.all_files(tree, progress)
        finally:
            packing.writer.abandon()
        packing.wait_for_all(progress)
        version = Version(epoch=epoch, seq=seq)
        manifest = _manifest(prefix, version, taken_at, reading.entries(tree), packing, previous)
        manifest, sealed = seal(manifest, instance_key)
        (state.stage / MANIFEST_FILE).write_bytes(sealed)
        move.put(MANIFEST_FILE, manifest.key)
        list(move.finished())
    state.keep_last(sealed)
    state.remember(manifest.key, reading.files.stamps, clock_ns)
    state.sweep()
    sent = tuple(Sent(pack_key(prefix, name), pack.size, pack.md5) for name, pack in packing.sent.items())
    return Taken(
        manifest=manifest,
        files=manifest.files,
        bytes=manifest.bytes,
        new_bytes=packing.writer.new_bytes,
        stored_bytes=sum(pack.size for pack in sent) + len(sealed),
        packs_new=sent,
        skipped=tuple(tree.skipped),
        torn=tuple(manifest.torn),
        vanished=tuple(reading.vanished),
        seconds=clock() - started,
    )


class _Reading:
    """Entries of all files: from the snapshot before where untouched, else read."""

    def __init__(self, root: bytes, writer: PackWriter, previous: Manifest | None, state: State) -> None:
        self.files = FileReader(root, writer)
        self.vanished: list[str] = []
        self._writer = writer
        self._before = {entry.path: entry for entry in previous.entries} if previous else {}
        self._seen = state.seen(previous.key) if previous else {}

    def all_files(self, tree: Scan, progress: Progress) -> None:
        files = [found for found in tree.found if found.kind == "file"]
        total, done = sum(found.stamp[0] for found in files), 0
        for found in files:
            if self._seen.get(found.path) == found.stamp and found.path in self._before:
                self._keep(found.path, found.stamp)
            elif not self.files.read(found):
                self.vanished += [printable(path) for path in (found.path, *found.others)]
            done += found.stamp[0]
            progress(done, total, "read")
        self.files.flush()
        self._writer.close()

    def _keep(self, path: bytes, untouched: Stamp) -> None:
        entry = self._before[path]
        for extent in entry.extents:
            self._writer.keep(extent.chunk)
        self.files.entries[path] = entry
        self.files.stamps[path] = untouched

    def entries(self, tree: Scan) -> Iterator[Entry]:
        for found in tree.found:
            if found.kind != "file":
                yield Entry(found.path, found.kind, found.mode, found.mtime_ns, target=found.target)
            elif entry := self.files.entries.get(found.path):
                yield entry
        for found in tree.found:  # last: a further name may lie in any directory
            if found.path in self.files.entries:
                yield from (Entry(path, "hardlink", target=found.path) for path in found.others)


class _Packing:
    """Packs on their way: written, uploaded, and removed from the stage when the upload is done."""

    def __init__(self, prefix: str, stage: Path, move: Transfer, previous: Manifest | None) -> None:
        self.sent: dict[str, Pack] = {}
        self._prefix = prefix
        self._stage = stage
        self._move = move
        self.writer = PackWriter(stage, previous.chunks if previous else {}, self._send)

    def wait_for_all(self, progress: Progress) -> None:
        total, done = sum(pack.size for pack in self.sent.values()), 0
        for name in self._move.finished():
            (self._stage / name).unlink()
            done += self.sent[name].size
            progress(done, total, "upload")

    def _send(self, name: str, pack: Pack) -> None:
        self.sent[name] = pack
        self._move.put(name, pack_key(self._prefix, name))
        for done in self._move.finished(leave=MAX_STAGED_PACKS - 1):
            (self._stage / done).unlink()


def _manifest(
    prefix: str,
    version: Version,
    taken_at: datetime,
    entries: Iterator[Entry],
    packing: _Packing,
    previous: Manifest | None,
) -> Manifest:
    """Holds only the chunks that a file refers to, and only the packs that hold one of them."""
    rows = tuple(entries)
    used = {extent.chunk for entry in rows for extent in entry.extents}
    chunks: dict[str, Chunk] = {name: chunk for name, chunk in packing.writer.chunks.items() if name in used}
    packs = {**(previous.packs if previous else {}), **packing.sent}
    needed = dict.fromkeys(chunk.pack for chunk in chunks.values())
    return Manifest(prefix, version, taken_at.isoformat(), rows, chunks, {name: packs[name] for name in needed})


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("the disk of the state directory has no room to stage packs") from None
        raise
