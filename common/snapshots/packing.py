"""Changed files into packs in the store: workers read and pack them, one s5cmd uploads what is full.

The engine only hands out tasks and slots. Workers are at least two fewer than slots, and a full slot always comes back
(uploaded, or the snapshot fails): so nobody waits for ever, and what waits for the line is at most `STAGE_BYTES`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import SnapshotError
from common.snapshots.chunk import SMALL_FILE_BYTES, ChunkWriter, Claims, content_sum, grain_of
from common.snapshots.keys import keys_of
from common.snapshots.lanes import LANES, md5_of
from common.snapshots.limits import MAX_FILE_BYTES
from common.snapshots.manifest import Chunk, Manifest, Pack, pack_key, printable
from common.snapshots.pack import FIRST_PACK_BYTES, PACK_BYTES, PackWriter, Row
from common.snapshots.read import FileReader, Place, Read, new_read
from common.snapshots.scan import Found, Scan, data_segments
from common.snapshots.stage import SLOTS, Stage, path_of, staged
from common.snapshots.transfer import STALL_S, Endpoint, Transfer, transfer
from common.snapshots.workers import MAX_WORKERS, Crew, Pipe, crew, worth

SMALL_TASK_BYTES = 8 << 20
SMALL_TASK_FILES = 1000
PIECE_BYTES = 64 << 20
"""A larger file is read by several workers. Content that moves over such a border costs a chunk or two."""
APART_BYTES = 2 << 20
"""A pack of small files that has grown so far is closed before large ones come: a restore wants those first."""
LINE_IS_SLOW_AT = 3
"""Packs waiting for the line: from then on text is squeezed harder, for the processor would only wait."""
SLOW_LINE_BYTES_S = 150e6
"""A line that is capped below this is slow from the start: two cores squeeze more text than it takes."""


@dataclass
class Counts:
    """What was done so far, for who is told of the progress."""

    files: int = 0
    stored_bytes: int = 0


Progress = Callable[[int, int, str], None]
"""progress(done_bytes, total_bytes, what), `what` being read, upload, download, verify or write."""

assert MAX_WORKERS <= SLOTS - 2


@dataclass(frozen=True)
class Small:
    numbers: Sequence[int]
    bytes: int


@dataclass(frozen=True)
class Piece:
    number: int
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Whole:
    """A large file that moved while its pieces were read."""

    number: int
    bytes: int = 0


@dataclass(frozen=True)
class Flush:
    """Nothing to read: the worker hands over the pack that it has begun, for somebody waits for its slot."""

    bytes: int = 0


Task = Small | Piece | Whole | Flush


@dataclass
class Packed:
    """What is in the store, or on its way there: complete when `reads` is at its end."""

    reads: Iterator[Read]
    send_last: Callable[[bytes, str], None]
    """Uploads the manifest, after everything else has arrived."""
    packs: dict[str, Pack] = field(default_factory=dict)
    chunks: dict[str, Chunk] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """The way to the store: where packs wait, and who takes them there."""

    stage: Stage
    move: Transfer
    slow_at: int
    """Packs waiting: from then on it counts as slow."""


@contextmanager
def line(folder: Path, endpoint: Endpoint) -> Iterator[Line]:
    """Open before there is anything to send: s5cmd starts while the workspace is looked at."""
    is_slow = endpoint.max_bytes_s is not None and endpoint.max_bytes_s < SLOW_LINE_BYTES_S
    with staged(folder) as stage, transfer(endpoint, folder, [*stage.slots, stage.manifest]) as move:
        yield Line(stage, move, 0 if is_slow else LINE_IS_SLOW_AT)


@contextmanager
def store(
    tree: Scan,
    unread: Sequence[int],
    prefix: str,
    instance_key: bytes,
    previous: Manifest | None,
    sums: Collection[str],
    line: Line,
    progress: Progress,
    counts: Counts,
) -> Iterator[Packed]:
    """Reads the files at `unread` in the walk; the caller draws `reads` to their end, then sends the manifest.

    `sums` are those of small files whose bytes are in the store.
    """
    tasks = _tasks(tree.root, tree.found, unread)
    size = sum(task.bytes for task in tasks)
    keys, known = keys_of(instance_key), previous.chunks if previous else {}
    chunks = sum(
        task.bytes // grain_of(tree.found[task.number].stamp[0])[1] for task in tasks if isinstance(task, Piece)
    )
    claims = Claims(len(unread) + chunks)
    full_at = PACK_BYTES if previous else min(PACK_BYTES, max(FIRST_PACK_BYTES, size // SLOTS))

    def work(pipe: Pipe) -> None:
        worker = _Worker(pipe, tree.root, tree.found)
        packs = PackWriter(keys, worker.claim, worker.hand_over, full_at)
        worker.run(packs, ChunkWriter(keys, known, sums, claims, packs))

    with crew(worth(size, len(tasks)), work) as workers:
        loop = _Loop(prefix, tree.found, tasks, workers, line, progress, counts)
        yield Packed(loop.reads(), loop.send_last, loop.packs, loop.chunks)


class _Loop:
    """The engine's side: tasks and slots out, readings and full packs in."""

    def __init__(
        self,
        prefix: str,
        found: Sequence[Found],
        tasks: list[Task],
        workers: Crew,
        line: Line,
        progress: Progress,
        counts: Counts,
    ) -> None:
        self.packs: dict[str, Pack] = {}
        self.chunks: dict[str, Chunk] = {}
        self._prefix = prefix
        self._tasks = deque(tasks)
        self._total = sum(task.bytes for task in tasks)
        self._done = 0
        self._pieces = _Pieces(found, tasks)
        self._stage = line.stage
        self._workers = workers
        self._move = line.move
        self._progress = progress
        self._counts = counts
        self._slow_at = line.slow_at
        self._in_work: dict[int, Task] = {}
        self._waiting: list[int] = []
        """Workers that need a slot."""
        self._holding: set[int] = set()
        """Workers that have one, with a pack in it that is not full yet."""
        self._closing: set[int] = set()
        """Workers that were told that there is nothing left to do."""
        self._slots: dict[str, int] = {}
        """Path of what is being uploaded -> its slot."""
        self._unsummed: dict[int, str] = {}
        """Slots with packs whose MD5 is still to be made, side by side with others': it is wanted by the manifest."""

    def reads(self) -> Iterator[Read]:
        """Every file that had to be read, in no order; at the end all packs are on their way."""
        while self._tasks or len(self._closing) < self._workers.count or self._workers.busy:
            self._hand_out()
            for worker, message in self._workers.messages(self._move.fileno(), STALL_S):
                yield from self._take_in(worker, message)
            self._take_back()
        self._sum_up()

    def send_last(self, content: bytes, key: str) -> None:
        while self._move.under_way:
            self._take_back(wait=True)
        _write(self._stage.manifest, content)
        self._move.put(path_of(self._stage.manifest), key)
        list(self._move.finished())

    def _hand_out(self) -> None:
        while self._waiting and (slot := self._claim()) is not None:
            self._holding.add(self._waiting[0])
            self._workers.send(self._waiting.pop(0), slot)
        nothing_comes_back = bool(self._waiting) and not self._move.under_way
        for worker in sorted(self._workers.idle):
            if nothing_comes_back and worker in self._holding:  # a stage with room for fewer packs than workers
                self._give(worker, Flush())
            elif self._tasks:
                self._give(worker, self._tasks.popleft())
            elif worker not in self._closing and not self._pieces.open:
                self._closing.add(worker)
                self._workers.give(worker, None)

    def _claim(self) -> int | None:
        """A free slot; the last ones are kept by packs that only wait for others to be summed with."""
        slot = self._stage.claim()
        if slot is None and self._unsummed:
            self._sum_up()
            slot = self._stage.claim()
        return slot

    def _give(self, worker: int, task: Task) -> None:
        self._in_work[worker] = task
        self._workers.give(worker, (task, self._move.under_way >= self._slow_at))

    def _take_in(self, worker: int, message: tuple[str, object]) -> Iterator[Read]:
        match message:
            case ("slot", _):
                self._waiting.append(worker)
            case ("pack", (int(slot), str(name), tuple(pack), list(rows))):
                self._holding.discard(worker)
                self._upload(slot, name, Pack._make(pack), rows)
            case ("done", list(rows)):
                self._workers.idle.add(worker)
                task = self._in_work.pop(worker)
                self._done += task.bytes
                self._counts.files += len(rows)
                self._progress(self._done, self._total, "read")
                reads = map(new_read, rows)
                if isinstance(task, Small):
                    yield from reads
                    return
                for read in reads:
                    yield from self._pieces.settle(task, read, self._tasks)
            case ("closed", _):
                self._workers.idle.add(worker)
            case ("reads", _):
                pass  # that it says something is all

    def _upload(self, slot: int, name: str, pack: Pack, rows: list[Row]) -> None:
        self.packs[name] = pack
        self._counts.stored_bytes += pack.size
        for chunk, offset, stored, plain, codec in rows:
            self.chunks.setdefault(chunk, Chunk(name, offset, stored, plain, codec))
        self._slots[path_of(slot)] = slot
        self._unsummed[slot] = name
        self._move.put(path_of(slot), pack_key(self._prefix, name))
        if len(self._unsummed) == LANES:
            self._sum_up()

    def _sum_up(self) -> None:
        sums = md5_of([self._stage.content(slot, self.packs[name].size) for slot, name in self._unsummed.items()])
        under_way = set(self._slots.values())
        for (slot, name), md5 in zip(self._unsummed.items(), sums, strict=True):
            self.packs[name] = self.packs[name]._replace(md5=md5)
            if slot not in under_way:
                self._stage.release(slot)
        self._unsummed.clear()

    def _take_back(self, *, wait: bool = False) -> None:
        done = self._move.finished(leave=self._move.under_way - 1) if wait else self._move.heard()
        for path in done:
            slot = self._slots.pop(path)
            if slot not in self._unsummed:
                self._stage.release(slot)


class _Pieces:
    """Readings of one large file, put together; a file that moved between them is read again as a whole."""

    def __init__(self, found: Sequence[Found], tasks: Sequence[Task]) -> None:
        self._found = found
        self._left: dict[int, int] = {}
        for task in tasks:
            if isinstance(task, Piece):
                self._left[task.number] = self._left.get(task.number, 0) + 1
        self._reads: dict[int, list[Read]] = {number: [] for number in self._left}

    @property
    def open(self) -> bool:
        """Is some file not complete yet? Then a task may still follow."""
        return bool(self._left)

    def settle(self, task: Task, read: Read, tasks: deque[Task]) -> Iterator[Read]:
        if isinstance(task, Whole):
            self._left.pop(read.number, None)
        if not isinstance(task, Piece):
            yield read
            return
        self._reads[read.number].append(read)
        self._left[read.number] -= 1
        if self._left[read.number]:
            return
        pieces = self._reads.pop(read.number)
        if any(piece.gone or piece.status for piece in pieces):
            self._left[read.number] = 1
            tasks.append(Whole(read.number))
            return
        del self._left[read.number]
        places: list[Place] = sorted(place for piece in pieces for place in piece.places or ())
        xattrs = next((piece.xattrs for piece in pieces if piece.xattrs), ())
        yield Read(read.number, content_sum(place[1] for place in places), places, xattrs)


class _Worker:
    """A worker's side of the pipe."""

    def __init__(self, pipe: Pipe, root: bytes, found: Sequence[Found]) -> None:
        self._pipe = pipe
        self._root = root
        self._found = found

    def run(self, packs: PackWriter, chunks: ChunkWriter) -> None:
        reader = FileReader(self._root, self._found, chunks, lambda: self._pipe.send(("reads", None)))
        while (message := self._pipe.recv()) is not None:
            task, chunks.tightly = message
            if packs.holds_small and isinstance(task, Piece) and packs.size >= APART_BYTES:
                packs.close()
            packs.holds_small = isinstance(task, Small)
            match task:
                case Small():
                    reads = reader.small(task.numbers)
                case Piece():
                    reads = [reader.piece(task.number, task.start, task.end)]
                case Whole():
                    reads = reader.whole(task.number)
                case Flush():
                    packs.close()
                    reads = []
            self._pipe.send(("done", list(map(tuple, reads))))
        packs.close()
        self._pipe.send(("closed", None))

    def claim(self) -> int:
        self._pipe.send(("slot", None))
        return int(self._pipe.recv())

    def hand_over(self, slot: int, name: str, pack: Pack, rows: list[Row]) -> None:
        self._pipe.send(("pack", (slot, name, tuple(pack), rows)))


def _tasks(root: bytes, found: Sequence[Found], unread: Sequence[int]) -> list[Task]:
    """Small files first, in the order of their paths, then the large ones, the largest first."""
    small: list[Task] = []
    large: list[Piece] = []
    numbers: list[int] = []
    size = 0
    for number in unread:
        file_bytes = found[number].stamp[0]
        if file_bytes > SMALL_FILE_BYTES:
            large += _pieces(root, found[number], number)
            continue
        numbers.append(number)
        size += file_bytes
        if size >= SMALL_TASK_BYTES or len(numbers) == SMALL_TASK_FILES:
            small.append(Small(tuple(numbers), size))
            numbers, size = [], 0
    if numbers:
        small.append(Small(tuple(numbers), size))
    return [*small, *sorted(large, key=lambda piece: -piece.bytes)]


def _pieces(root: bytes, found: Found, number: int) -> list[Piece]:
    """At least one, so that a file of nothing but a hole is read too."""
    size = found.stamp[0]
    if size > MAX_FILE_BYTES:
        raise SnapshotError(
            f"{printable(found.path)} is of {size} bytes, and a snapshot holds files of {MAX_FILE_BYTES} at most: "
            "leave it out by .dumontignore"
        )
    segments = _data(root, found) if found.may_have_holes else [(0, size)]
    return [
        Piece(number, at, min(at + PIECE_BYTES, end))
        for start, end in segments
        for at in range(start, end, PIECE_BYTES)
    ] or [Piece(number, 0, 0)]


def _data(root: bytes, found: Found) -> list[tuple[int, int]]:
    try:
        with open(root + b"/" + found.path, "rb", buffering=0) as file:
            if not found.others or os.fstat(file.fileno()).st_ino == found.stamp[3]:
                return list(data_segments(file.fileno(), found.stamp[0]))
    except OSError:
        pass
    return [(0, found.stamp[0])]  # the worker finds out what is the matter


def _write(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.pwrite(fd, rest, len(content) - len(rest)) :]
