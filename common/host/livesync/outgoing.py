"""How each kind of change is put into the stream: a small file whole, a large one in pieces, a log by its tail.

Whoever calls has taken the change out of the book; its number is held until the frame that brings it is in the stream.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable

from common.host.livesync import content, frames
from common.host.livesync.book import TORN_WAIT_MOST_S, TORN_WAIT_S, Book, Change
from common.host.livesync.content import Changing, Sent, Source, proof_of
from common.host.livesync.folders import FolderTimes
from common.host.livesync.frames import (
    PIECE_BYTES_MAX,
    Delete,
    Entry,
    File,
    Folder,
    Link,
    Meta,
    Move,
    Same,
    Tail,
    Wants,
)
from common.host.livesync.look import dress_of
from common.host.livesync.stream import Stream, Transfer
from common.host.livesync.watch import Watches
from common.snapshots.tree import join

SMALL_BYTES_MAX = 256 << 10
"""A file up to here goes whole, in one frame; a larger one in pieces."""
TAIL_FROM_BYTES = 4096
"""Of a file that grows from here on, only what it gained is sent."""
TAILS_MAX = 256
"""Files of which it is remembered what the receiver has."""
CHECKED_AT_ONCE_BYTES = 1 << 20
CHECK_SHARE = 20.0
"""A closed log is compared with what was sent of it no more often than once in so many times what that takes."""
TORN_MAX = 3
NO_TIME_NS = -1
"""No file has it."""


class Outgoing:
    def __init__(self, source: Source, watches: Watches, book: Book, clock: Callable[[], float]) -> None:
        self.source, self._watches, self.book, self._clock = source, watches, book, clock
        self.stream: Stream | None = None
        self.tails: OrderedDict[bytes, Sent] = OrderedDict()
        self.unchecked: set[bytes] = set()
        """Files whose tail was sent while somebody still wrote them: what was before it is not compared yet."""
        self._held: dict[bytes, Change] = {}
        """By path, neither in the book nor in the stream: large files that wait, are compared, or are on their way."""
        self._large: list[tuple[int, int, Change]] = []
        self._order = 0
        self._checks: set[asyncio.Task[None]] = set()
        self._doubted: set[bytes] = set()
        """Files that the receiver will ask for, for they are listed without a time."""
        self.folder_times = FolderTimes()
        self.news = asyncio.Event()
        """Something was put back that may be sent."""

    # --- one change

    def send(self, change: Change) -> None:
        if not change.is_echo:
            for name in self.source.same_files(change.path):
                self.book.touch(name, self._clock(), is_closed=change.is_closed, is_echo=True)
        entry = self.source.entry(change.path)
        if entry and change.path and self.source.is_out(change.path, entry.kind == b"d"):
            entry = None
        if change.path in self._held:
            if entry and entry.kind == b"f" and (entry.size > SMALL_BYTES_MAX or not change.has_content):
                self.book.put_back(change, self._clock() + TORN_WAIT_S)  # first what is on its way
                return
            self._supersede(change.path)
        if entry is None:
            self.tails.pop(change.path, None)
            self._put(Delete(change.path), change)
        elif entry.kind == b"f":
            self._send_file(change, entry)
        elif entry.kind == b"l":
            self._put(Link(change.path, entry.dress, entry.target), change, entry)
        elif change.is_tree:
            self._send_tree(change, entry)
        else:
            self._put(Folder(change.path, entry.dress), change, entry)

    def compare(
        self, path: bytes, seq: int, since_s: float, *, is_of_pass: bool, doubts_from_ns: int | None = None
    ) -> tuple[list[bytes], list[Entry]]:
        """Puts a directory's listing into the stream, watched from before it was read; its directories, and all.

        The time of a file is not believed that is of `doubts_from_ns` or later.
        """
        assert self.stream
        folder = self.source.open_folder(path)
        if folder is None:
            return [], []
        try:
            self._watches.watch(path, folder)
            entries = self.source.entries(path, folder)
        finally:
            os.close(folder)
        listed = entries if doubts_from_ns is None else [self._doubting(path, each, doubts_from_ns) for each in entries]
        for listing in frames.listings(path, listed, is_of_pass=is_of_pass):
            self.stream.put(listing, seq, since_s, is_tree=True)
        return [join(path, entry.name) for entry in entries if entry.kind == b"d"], entries

    def move(self, source: bytes, path: bytes, *, is_dir: bool) -> None:
        """At once, in the order of events: what the receiver has under the old name it has under the new one then."""
        now_s = self._clock()
        is_open = self.book.move(source, path, now_s) | self._retarget(source, path)
        tail = self.tails.pop(source, None)
        self.source.names.moved(source, path)
        for known in [known for known in self.tails if is_dir and known.startswith(source + b"/")]:
            del self.tails[known]
        entry = self.source.entry(path)
        if self.stream is None or entry is None or (is_open and not is_dir) or is_dir != (entry.kind == b"d"):
            self.book.touch(source, now_s)
            self.book.touch(path, now_s, is_tree=is_dir)
            return
        self._send_above(path)
        self.stream.put(Move(source, path, entry), self.book.next_seq(), now_s, entry=entry)
        self.folder_times.changed(source, now_s)
        self.folder_times.changed(path, now_s)
        if is_dir:  # what happened in it while its events were on their way is found by comparing
            self.book.touch(path, now_s, is_tree=True)
        elif tail:
            self._remember(path, tail)

    def wanted(self, wants: Wants, *, seq: int | None) -> bool:
        """What the receiver asks for is a change again, unless it is one or on its way.

        True: a pass showed a difference that no event had told of. `seq` is its number then, if there is one.
        """
        assert self.stream
        now_s, found = self._clock(), self.stream.wanted(wants)
        if found and found.source:
            self.book.touch(found.source, now_s, seq=found.seq)
        is_news = False
        for name, digest in wants.names:
            path = join(wants.path, name)
            is_doubted = path in self._doubted
            self._doubted.discard(path)
            if path in self._held or path in self.stream.placed:  # it may have been read before it was listed
                self.book.touch(path, now_s, has_content=is_doubted)
                continue
            if self.stream.last_of.get(path, 0) > wants.at:
                continue
            is_news |= path not in self.book.changes and not is_doubted
            self.tails.pop(path, None)
            known_seq = found.seq if found and found.seq else seq
            self.book.touch(path, now_s, is_tree=True, seq=known_seq, digest=digest)
        return is_news and (found is None or not found.seq)

    def send_folder_times(self) -> None:
        """Of directories that have been left alone for a while."""
        now_s = self._clock()
        for path in self.folder_times.due(now_s) if self.stream else ():
            entry = self.source.entry(path)
            if entry and entry.kind == b"d" and self.stream:
                self.stream.put(Folder(path, entry.dress), 0, now_s)

    # --- large files

    def feed(self) -> None:
        """As many large files as may be on their way, the smallest first."""
        while self._large and self.stream and self.stream.may_transfer:
            _, _, change = heapq.heappop(self._large)
            if self._held.get(change.path) is not change:
                continue
            fd = self.source.open_file(change.path)
            if fd is None or change.path in self.book.changes:
                if fd is not None:
                    os.close(fd)
                del self._held[change.path]
                self.book.put_back(change, self._clock())
                continue
            self.stream.begin(change, fd)

    def complete(self, transfer: Transfer) -> None:
        """All of it is durable over there: it gets its name, if that is still the name of what was read."""
        assert self.stream
        change, now_s = transfer.change, self._clock()
        self._held.pop(change.path, None)
        status = self.source.still(change.path, transfer.status)
        is_there, transfer.status = status is not None, status or transfer.status
        if transfer.is_torn:
            change.tries += 1
        if not is_there or (transfer.is_torn and change.tries <= TORN_MAX):
            self.stream.drop(transfer)
            self.book.put_back(change, now_s + (change.wait_s if is_there else 0))
        elif transfer.is_torn:  # for ever rewritten: better torn than old, but not confirmed
            self.stream.place(transfer, seq=0)
            self.book.put_back(change, now_s + TORN_WAIT_MOST_S)
        else:
            self._remember(change.path, self.stream.place(transfer, seq=change.seq))
            self.book.release(change.seq)
            self.folder_times.changed(change.path, now_s)
            if not change.is_closed:
                self.unchecked.add(change.path)

    # --- the end of a stream

    def give_back(self) -> None:
        """Nothing is on its way any more: what was, or was held, is a change again."""
        now_s = self._clock()
        if self.stream:
            for sent in self.stream.on_its_way:
                if sent.seq:
                    for path in filter(None, (sent.path, sent.source)):
                        self.book.touch(path, now_s, is_tree=sent.is_tree, seq=sent.seq).since_s = sent.since_s
            self.stream.close()
            self.stream = None
        for task in self._checks:
            task.cancel()
        for change in self._held.values():
            self.book.put_back(change, now_s)
        self._held.clear()
        self._large.clear()
        self.tails.clear()
        self.unchecked.clear()
        self._doubted.clear()

    @property
    def held(self) -> Iterable[Change]:
        return self._held.values()

    # --- steps

    def _doubting(self, path: bytes, entry: Entry, from_ns: int) -> Entry:
        """Without its time, whoever has it asks for it, and says what he has: only the content tells then."""
        if entry.kind != b"f" or entry.dress.mtime_ns < from_ns:
            return entry
        self._doubted.add(join(path, entry.name))
        return entry._replace(dress=entry.dress._replace(mtime_ns=NO_TIME_NS))

    def _send_tree(self, change: Change, entry: Entry) -> None:
        seq, path = change.seq, change.path
        self._put(Folder(path, entry.dress), change, entry, is_tree=True, is_kept=True)
        below, _ = self.compare(path, seq, change.since_s, is_of_pass=False)
        for each in below:
            self.book.touch(each, self._clock(), is_tree=True, seq=seq)
        self.book.release(seq)

    def _send_file(self, change: Change, entry: Entry) -> None:
        if not change.has_content:
            self._put(Same(change.path, entry), change, entry)
            return
        fd = self.source.open_file(change.path)
        if fd is None:
            self.again(change)
            return
        try:
            status = os.fstat(fd)
            tail = self.tails.get(change.path)
            if tail and content.is_continued(fd, status, tail, more_than=SMALL_BYTES_MAX):
                self._send_tail(change, fd, status, tail)
            elif not change.is_closed and self._clock() - change.since_s < 0.2:
                self.book.put_back(change, self.book.quiet_at_s(change, self._clock()))
            elif status.st_size <= SMALL_BYTES_MAX:
                self._send_small(change, fd)
            else:
                self._send_large(change, fd, status)
        finally:
            os.close(fd)

    def _send_small(self, change: Change, fd: int) -> None:
        try:
            data, status = content.whole(fd, SMALL_BYTES_MAX)
        except Changing:
            self.again(change)
            return
        dress = dress_of(status)
        self._put(File(change.path, dress, data), change, Entry(b"", b"f", dress, len(data), b""))
        self.unchecked.discard(change.path)
        if len(data) >= TAIL_FROM_BYTES:
            self._remember(change.path, content.sent_of(status.st_ino, data))
        else:
            self.tails.pop(change.path, None)

    def _send_large(self, change: Change, fd: int, status: os.stat_result) -> None:
        if change.digest and change.proof == proof_of(status):
            dress = dress_of(status)
            entry = Entry(b"", b"f", dress, status.st_size, b"")
            self._put(Meta(change.path, dress, status.st_size), change, entry)
        elif change.digest:
            self._check(change, os.dup(fd), status.st_size, change.digest, proof_of(status))
        else:
            self.tails.pop(change.path, None)
            self._order += 1
            heapq.heappush(self._large, (status.st_size, self._order, change))
            self._held[change.path] = change
            self.feed()

    def _send_tail(self, change: Change, fd: int, status: os.stat_result, tail: Sent) -> None:
        """What it gained. A file that was closed is compared first: only logs leave alone what they wrote before."""
        is_due = True
        if change.is_closed and change.proof != proof_of(status, tail.size):
            if tail.size <= CHECKED_AT_ONCE_BYTES:
                if content.digest(fd, tail.size) != tail.hasher.digest():
                    del self.tails[change.path]
                    self.book.put_back(change, self._clock())
                    return
            elif self._clock() >= tail.check_at_s:
                self._check(change, os.dup(fd), tail.size, tail.hasher.digest(), proof_of(status, tail.size))
                return
            else:
                is_due = False
        data = os.pread(fd, PIECE_BYTES_MAX, tail.size)
        dress = dress_of(status)
        entry = Entry(b"", b"f", dress, tail.size + len(data), b"")
        is_all = tail.size + len(data) >= status.st_size
        frame = Tail(change.path, dress, tail.size, data) if data else Meta(change.path, dress, tail.size)
        self._put(frame, change, entry, is_kept=not (is_all and is_due))
        tail.add(data)
        self.tails.move_to_end(change.path)
        if not is_all or not is_due:
            change.proof = proof_of(status, tail.size) if is_due and change.is_closed else ()
            self.book.put_back(change, self._clock() if not is_all else tail.check_at_s)
        elif change.is_closed:
            self.unchecked.discard(change.path)
        else:
            self.unchecked.add(change.path)

    def _check(self, change: Change, fd: int, size: int, expected: bytes, proof: tuple[int, ...]) -> None:
        """Compares in a thread; the change comes back with its proof, or without what was supposed."""

        async def check() -> None:
            began_s = self._clock()
            try:
                is_equal = await asyncio.to_thread(content.digest, fd, size) == expected
            except OSError:
                is_equal = False
            finally:
                os.close(fd)
            if self._held.get(change.path) is not change:
                return  # somebody else has it by now
            del self._held[change.path]
            now_s = self._clock()
            if tail := self.tails.get(change.path):
                tail.check_at_s = now_s + CHECK_SHARE * (now_s - began_s)
            if is_equal:
                change.proof = proof
            else:
                change.digest = b""
                self.tails.pop(change.path, None)
            self.book.put_back(change, now_s)
            self.news.set()

        self._held[change.path] = change
        task = asyncio.ensure_future(check())
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def again(self, change: Change) -> None:
        """Later, and later every time."""
        change.tries += 1
        self.book.put_back(change, self._clock() + change.wait_s)

    def _put(
        self,
        frame: frames.Frame,
        change: Change,
        entry: Entry | None = None,
        *,
        is_tree: bool = False,
        is_kept: bool = False,
    ) -> None:
        """`is_kept`: the number stays held, for this frame is not all of the change."""
        assert self.stream
        seq = 0 if is_kept and not is_tree else change.seq
        self.stream.put(frame, seq, change.since_s, entry=entry, is_tree=is_tree)
        if not is_kept:
            self.book.release(change.seq)
        self.folder_times.changed(change.path, self._clock())

    def _send_above(self, path: bytes) -> None:
        """Directories on the way that the receiver may not know of."""
        for at in [at for at, byte in enumerate(path) if byte == ord("/")]:
            if change := self.book.take(path[:at]):
                self.send(change)

    def _retarget(self, source: bytes, path: bytes) -> bool:
        """Was what moved itself held?"""
        below = source + b"/"
        for known in [known for known in self._held if known == source or known.startswith(below)]:
            change = self._held.pop(known)
            change.path = path + known[len(source) :]
            self._supersede(change.path)
            self._held[change.path] = change
        return path in self._held

    def _supersede(self, path: bytes) -> None:
        """What is held of the path is older than what is sent now: it must not come after it."""
        change = self._held.pop(path, None)
        if change is None:
            return
        for transfer in list(self.stream.transfers.values()) if self.stream else []:
            if transfer.change is change:
                assert self.stream
                self.stream.drop(transfer)
        self.book.put_back(change, self._clock())

    def _remember(self, path: bytes, sent: Sent) -> None:
        self.tails[path] = sent
        self.tails.move_to_end(path)
        if len(self.tails) > TAILS_MAX:
            gone, _ = self.tails.popitem(last=False)
            self.unchecked.discard(gone)
