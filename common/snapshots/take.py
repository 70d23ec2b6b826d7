"""Takes a snapshot: scan, read what changed, pack it, upload the packs, and last of all the manifest."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from common.domain.version import Version
from common.errors import DiskFull, SnapshotError, SnapshotRefused, is_full
from common.snapshots import packing
from common.snapshots.changed import nothing_but
from common.snapshots.chunk import SMALL_FILE_BYTES
from common.snapshots.ignore import excludes
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack, pack_key, printable
from common.snapshots.mapped import mapped_inodes
from common.snapshots.packing import Counts, Line, Packed, Progress
from common.snapshots.read import Read, read_xattrs
from common.snapshots.repack import waste_of, without
from common.snapshots.scan import Excludes, Found, Scan
from common.snapshots.seal import check, seal
from common.snapshots.state import State
from common.snapshots.transfer import Endpoint
from common.snapshots.walkers import Walkers
from common.snapshots.workers import apart

MAX_SECONDS = 12 * 3600.0
"""A snapshot that took longer is given up: a prune counts on it, and half of its grace is never less."""


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
    """(name, kind) of FIFOs, sockets and devices, which no snapshot holds, and of lines of `.dumontignore` that are no
    patterns."""
    torn: tuple[str, ...]
    """Files that changed whenever they were read."""
    vanished: tuple[str, ...]
    """Files that were removed while the snapshot was taken; it does not hold them."""
    excluded: tuple[str, ...]
    """What the default excludes and `.dumontignore` left out; a directory stands for all that is in it."""
    seconds: float

    @property
    def manifest_key(self) -> str:
        return self.manifest.key


@dataclass(frozen=True)
class Begun:
    """A snapshot of which all is done that can be without knowing the one before."""

    state: State
    clock_ns: int
    tree: Callable[[], Scan]
    """Waits for the end of the walk, which goes on beside; raises `SnapshotError`."""
    line: Line


@contextmanager
def begun(root: Path, state: State, endpoint: Endpoint, leaves_out: Excludes | None = None) -> Iterator[Begun]:
    """The workspace is walked by processes of their own, and s5cmd waits; raises `DiskFull`."""
    clock_ns, leaves_out = state.file_clock_ns(), leaves_out or excludes(root)
    with (
        _room(),
        packing.line(state.folder, endpoint) as line,
        closing(Walkers(bytes(root), leaves_out)) as walk,
        apart(walk.go) as walking,
    ):
        yield Begun(state, clock_ns, lambda: walk.result(walking()), line)


def take(
    root: Path,
    *,
    prefix: str,
    instance_key: bytes,
    epoch: int,
    seq: int | Callable[[], int],
    taken_at: datetime,
    previous: Manifest | Callable[[], Manifest | None] | None,
    state_dir: Path,
    endpoint: Endpoint,
    clock: Callable[[], float],
    progress: Progress = lambda _done, _total, _what: None,
    max_seconds: float = MAX_SECONDS,
    counts: Counts | None = None,
    only: frozenset[bytes] | None = None,
    repacks: bool = False,
) -> Taken:
    """A snapshot of everything below root, or of `only` these names and the directories on the way.

    `clock` gives monotonic seconds.

    `seq`, where it is a function, is asked when all has been read: no change that may be in it has a higher number.
    `previous` must be of the same prefix, and its packs be kept in the store; a function that gets it is called while
    the workspace is walked. `repacks`: of its packs those are left of which little is needed (module `repack`).

    Raises `SnapshotError` (a file cannot be read, or a snapshot cannot hold it), `DiskFull` (no room to stage packs),
    `ObjectStoreError`; then there is no manifest, and trying again is safe.
    """
    started = clock()
    with begun(root, State(state_dir, root), endpoint, excludes(root) if only is None else nothing_but(only)) as begin:
        before = previous() if callable(previous) else previous

        def version() -> Version:
            return Version(epoch=epoch, seq=seq() if callable(seq) else seq)

        return finish(
            begin,
            prefix,
            instance_key,
            version,
            taken_at,
            before,
            clock,
            started,
            progress,
            max_seconds,
            counts,
            repacks,
        )


def finish(
    begun: Begun,
    prefix: str,
    instance_key: bytes,
    version: Callable[[], Version],
    taken_at: datetime,
    previous: Manifest | None,
    clock: Callable[[], float],
    started: float,
    progress: Progress,
    max_seconds: float = MAX_SECONDS,
    counts: Counts | None = None,
    repacks: bool = False,
) -> Taken:
    """The rest of a snapshot that was begun when the clock stood at `started`; as `take`."""
    if previous and previous.prefix != prefix:
        raise SnapshotError(f"the snapshot before is of {previous.prefix}, not of {prefix}")
    before = _before(previous, begun.state) if previous else {}  # while the walk goes on
    if previous and repacks:
        previous = without(previous, waste_of(previous).packs)
        before = {entry.path: before[entry.path] for entry in previous.entries}
    state, tree = begun.state, begun.tree()
    entries = _Entries(tree, previous, before)
    if entries.unread:  # after the clock, before the first reading
        entries.mapped = mapped_inodes()
    with packing.store(
        tree, entries.unread, prefix, instance_key, previous, entries.sums, begun.line, progress, counts or Counts()
    ) as packed:
        for read in packed.reads:
            entries.add(read)
        rows = sorted(entries.all())
        seen = entries.seen([number for _, number, _ in rows])
        manifest = _manifest(prefix, version(), taken_at, tuple(entry for _, _, entry in rows), packed, previous)
        del rows
        manifest, sealed = _sealed(manifest, instance_key)
        if clock() - started > max_seconds:
            raise SnapshotError(f"the snapshot took longer than {max_seconds:.0f} s")
        packed.send_last(sealed, manifest.key)
    state.keep_last(sealed)
    state.remember(manifest, *seen, begun.clock_ns)
    sent = tuple(Sent(pack_key(prefix, name), pack.size, pack.md5) for name, pack in packed.packs.items())
    return Taken(
        manifest=manifest,
        files=manifest.files,
        bytes=manifest.bytes,
        new_bytes=sum(chunk.plain for chunk in packed.chunks.values()),
        stored_bytes=sum(pack.size for pack in sent) + len(sealed),
        packs_new=sent,
        skipped=tuple(tree.skipped),
        torn=tuple(manifest.torn),
        vanished=tuple(entries.vanished),
        excluded=tuple(map(printable, tree.excluded)),
        seconds=clock() - started,
    )


Before = dict[bytes, tuple[Entry | None, int, int]]
"""(entry, ctime_ns, inode) of each name of the snapshot before."""


class _Entries:
    """Entries of all names: from the snapshot before where a file is untouched, else from its reading."""

    def __init__(self, tree: Scan, previous: Manifest | None, before: Before) -> None:
        self.vanished: list[str] = []
        self.unread: list[int] = []
        """Places in the walk of the files that have to be read."""
        self.sums: dict[str, tuple[Extent, ...]] = {}
        """Where the bytes of each small file's content are, by its sum."""
        self.mapped: set[int] = set()
        """Inodes that are read, and whose times will not tell whether they changed since."""
        self._tree = tree
        self._files: list[Entry | None] = [None] * len(tree.found)
        self._times_ns, self._inodes = (array(code, bytes(8 * len(tree.found) + 8)) for code in "qQ")
        """Of each file that was read undisturbed; else 0, and 0 in the end."""
        self._apart: list[Entry] = []
        """Names that the walk met as those of one file, and that led to several when it was read."""
        self._twins: list[Read] = []
        """Readings of contents that another small file has."""
        for number, found in enumerate(tree.found):
            if found.kind != "file":
                continue
            marks = found.stamp
            entry, ctime_ns, inode = before.get(found.path, NEVER)
            if entry and inode and marks == (entry.size, entry.mtime_ns, ctime_ns, inode) and entry.kind == "file":
                self._files[number] = entry if entry.uid == found.uid else _as_found(entry, found)
                self._times_ns[number], self._inodes[number] = ctime_ns, inode
            else:
                self.unread.append(number)
        if self.unread and previous:
            self.sums = {entry.sum: entry.extents for entry in previous.entries if _is_small_and_full(entry)}

    def add(self, read: Read) -> None:
        found = self._tree.found[read.number]
        if read.name:
            found = found._replace(path=read.name, others=())
        if read.gone:
            self.vanished += [printable(path) for path in (found.path, *found.others)]
            return
        if read.places is None:
            self._twins.append(read)
            return
        extents = tuple(map(new_extent, read.places))
        size = found.stamp[0]
        if len(extents) == 1 and extents[0].length == size <= SMALL_FILE_BYTES and not read.status:
            self.sums.setdefault(read.sum, extents)
        self._settle(read, found, extents)

    def _settle(self, read: Read, found: Found, extents: tuple[Extent, ...]) -> None:
        status = read.status
        stamp, torn = (found.stamp, False) if status is None else (status.stamp, status.torn)
        mode, mtime_ns, size = status[:3] if status else (found.mode, found.mtime_ns, found.stamp[0])
        entry = Entry(
            found.path, "file", mode, mtime_ns, size, read.sum, extents, b"", torn, found.uid, found.gid, read.xattrs
        )
        if read.name:
            self._apart.append(entry)
            return
        self._files[read.number] = entry
        if stamp and stamp[3] not in self.mapped:
            _, _, self._times_ns[read.number], self._inodes[read.number] = stamp

    def all(self) -> Iterator[tuple[bytes, int, Entry]]:
        """(path, number for `seen`, entry) of each name, when every reading was added: whoever took a content on has
        said by then where it is."""
        for read in self._twins:
            self._settle(read, self._tree.found[read.number], self.sums[read.sum])
        root, nobody = self._tree.root, len(self._files)
        yield from ((entry.path, nobody, entry) for entry in self._apart)
        for number, found in enumerate(self._tree.found):
            if found.kind == "file":
                if entry := self._files[number]:
                    yield found.path, number, entry
                    for path in found.others:
                        yield path, nobody, Entry(path, "hardlink", target=found.path)
                continue
            xattrs = read_xattrs(root + b"/" + found.path) if found.kind == "dir" else ()
            entry = Entry(
                found.path, found.kind, found.mode, found.mtime_ns, target=found.target,
                uid=found.uid, gid=found.gid, xattrs=xattrs,
            )  # fmt: skip
            yield found.path, nobody, entry

    def seen(self, numbers: Sequence[int]) -> tuple[array[int], array[int]]:
        """ctime_ns and inode of each, 0 where they are not to be remembered."""
        return (
            array("q", map(self._times_ns.__getitem__, numbers)),
            array("Q", map(self._inodes.__getitem__, numbers)),
        )


new_extent = partial(tuple.__new__, Extent)
NEVER: tuple[Entry | None, int, int] = (None, 0, 0)


def _before(previous: Manifest, state: State) -> Before:
    entries, (times_ns, inodes) = previous.entries, state.seen(previous)
    return dict(zip([entry.path for entry in entries], zip(entries, times_ns, inodes, strict=True), strict=True))


def _is_small_and_full(entry: Entry) -> bool:
    if not 0 < entry.size <= SMALL_FILE_BYTES or entry.torn:
        return False
    return len(entry.extents) == 1 and entry.extents[0].length == entry.size


def _as_found(entry: Entry, found: Found) -> Entry:
    """The content is the snapshot's before; so are mode and owner, for their change would have changed the ctime. Not
    so the owner where nobody had said it."""
    return entry._replace(uid=found.uid, gid=found.gid)


def _manifest(
    prefix: str,
    version: Version,
    taken_at: datetime,
    entries: tuple[Entry, ...],
    packed: Packed,
    previous: Manifest | None,
) -> Manifest:
    """Holds only the chunks that a file refers to, and only the packs that hold one of them."""
    used = dict.fromkeys(extent.chunk for entry in entries for extent in entry.extents)
    known: dict[str, Chunk] = previous.chunks if previous else {}
    chunks = {name: known.get(name) or packed.chunks[name] for name in used}
    packs: dict[str, Pack] = {**(previous.packs if previous else {}), **packed.packs}
    needed = dict.fromkeys(chunk.pack for chunk in chunks.values())
    return Manifest(prefix, version, taken_at.isoformat(), entries, chunks, {name: packs[name] for name in needed})


def _sealed(manifest: Manifest, instance_key: bytes) -> tuple[Manifest, bytes]:
    """Read by the reader's own rules before it is stored: a snapshot that nobody can read is worse than none, and the
    one before still stands."""
    try:
        manifest, sealed = seal(manifest, instance_key)
        check(sealed, manifest.key, instance_key)
    except (SnapshotRefused, OverflowError) as error:
        raise SnapshotError(f"the snapshot is not stored, for it could not be read again: {error}") from None
    return manifest, sealed


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull("the disk of the state directory has no room to stage packs") from None
        raise
