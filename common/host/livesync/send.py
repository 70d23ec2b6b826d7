"""The writer's end of the live sync: what changes in the workspace is on the mirror within milliseconds.

The kernel's events say which paths changed (`watch`), the book keeps them until they are confirmed (`book`), and one
stream brings them over (`stream`). What events may have missed - before the start, after an overflow, while the stream
was another's - is found by a pass: every directory's names with size, time and mode are compared over there, in the
same stream, and what differs is asked for. A pass runs at each new stream, after an overflow, and now and then.

`wait` is the barrier: it returns when everything that had changed before the call is on the mirror, and raises
otherwise; it never says so wrongly. It needs a mirror that the record names (rule A1), not just one that answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from common.domain.host import Sync
from common.domain.role import Role
from common.host.epoch import Epoch
from common.host.livesync import wire
from common.host.livesync.book import CHANGES_MAX, Book
from common.host.livesync.comparison import REPAIR_EVERY_S, Comparison
from common.host.livesync.content import Source
from common.host.livesync.ending import until_one_ends
from common.host.livesync.errors import NotInSync, TurnedAway
from common.host.livesync.frames import (
    VERSION,
    Ack,
    BadFrame,
    Hello,
    Mark,
    PassDone,
    Refused,
    Took,
    Wants,
    Welcome,
)
from common.host.livesync.outgoing import Outgoing
from common.host.livesync.receive import read_frame
from common.host.livesync.seqs import Seqs
from common.host.livesync.stream import OnItsWay, Stream
from common.host.livesync.watch import HALF_MOVE_S, Happening, Moved, Overflowed, Touched, Watches
from common.snapshots.ignore import IGNORE_FILE, excludes
from common.snapshots.mapped import let_stores_be_told

LOOK_EVERY_S = 1.0
"""At the role on the disk."""
CONNECT_WITHIN_S, WELCOME_WITHIN_S = 10.0, 10.0
AGAIN_S, AGAIN_MOST_S = 0.1, 5.0
TURN_CHANGES = 64
"""Put in before events are read again."""

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Sender:
    """`home` = the agent's folder, with this machine's role; `stream` = an id that no other start of it ever had."""

    def __init__(
        self,
        workspace: Path,
        home: Path,
        epoch: Epoch,
        connect: Connect,
        *,
        stream: bytes,
        clock: Callable[[], float],
        ack: Callable[[OnItsWay], None] = lambda _sent: None,
        repair_every_s: float = REPAIR_EVERY_S,
    ) -> None:
        self._workspace, self._epoch, self._connect = workspace, epoch, connect
        self._stream_id, self._clock, self._ack = stream, clock, ack
        self._seqs = Seqs(home)
        is_left_out = excludes(workspace).names
        self._watches = Watches(is_left_out)
        self._book = Book(self._seqs.last)
        self._out = Outgoing(Source(workspace, is_left_out), self._watches, self._book, clock)
        self._comparison = Comparison(self._out, repair_every_s)
        self._gap: int | None = None
        """Number (held) of the comparison that has to come before anything is whole again; None: nothing is missing."""
        self._whole_from = 0
        self._acked, self._acked_whole, self._acked_epoch = 0, False, -1
        self._waiters: set[asyncio.Future[None]] = set()
        self._has_progressed = False
        """Something was confirmed in this connection: the next one need not be waited for."""
        self.trouble = "no standby has answered yet"
        self._lose()

    # --- life

    async def run(self) -> None:
        """For ever: whatever ends a connection, the next one goes on from what the receiver has."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._watches.fd, self._on_events)
        wait_s = AGAIN_S
        try:
            while True:
                self._has_progressed = False
                role = self._epoch.read()
                if role.is_writer:
                    await self._attempt(role)
                else:
                    self.trouble = "this machine is not the writer"
                wait_s = AGAIN_S if self._has_progressed else min(2 * wait_s, AGAIN_MOST_S)
                await asyncio.sleep(wait_s if role.is_writer else LOOK_EVERY_S)
        finally:
            loop.remove_reader(self._watches.fd)
            self._watches.close()
            self._out.source.close()

    async def _attempt(self, role: Role) -> None:
        try:
            await self._session(role)
            self.trouble = "the record has changed"
        except (OSError, asyncio.IncompleteReadError, TimeoutError, BadFrame, TurnedAway) as error:
            self.trouble = str(error) or type(error).__name__
        finally:
            self._out.give_back()
            self._comparison.break_off()

    async def _session(self, role: Role) -> None:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            reader, writer = await self._connect()
        try:
            hello = Hello(VERSION, role.view.epoch, role.label.encode(), self._stream_id)
            writer.write(wire.pack(hello))
            async with asyncio.timeout(WELCOME_WITHIN_S):
                welcome = await _welcome(reader)
        except BaseException:
            writer.close()
            raise
        self._begin(role, welcome, Stream(writer, self._confirmed))
        await until_one_ends(self._listen(reader), self._pump(), self._look(role))

    def _begin(self, role: Role, welcome: Welcome, stream: Stream) -> None:
        self._out.stream, self.trouble = stream, ""
        if welcome.epoch == role.view.epoch:
            self._book.seq = max(self._book.seq, welcome.seq)
        is_going_on = welcome.stream == self._stream_id and welcome.seq >= self._acked
        if self._acked_epoch != role.view.epoch:
            self._acked, self._acked_whole = 0, False
        self._acked_epoch = role.view.epoch
        if not is_going_on:
            self._lose()
        if self._gap is not None:
            self._comparison.start(self._clock())

    async def _look(self, role: Role) -> None:
        """Ends the connection when the record names another writer, or another epoch."""
        while (now := self._epoch.read()).is_writer and now.view.epoch == role.view.epoch:
            await asyncio.sleep(LOOK_EVERY_S)

    # --- what happens here

    def _on_events(self) -> None:
        now_s = self._clock()
        for happening in self._watches.read(now_s):
            self._happened(happening, now_s)
        if self._watches.has_half:
            asyncio.get_running_loop().call_later(2 * HALF_MOVE_S, self._on_events)
        self._out.news.set()

    def _happened(self, happening: Happening, now_s: float) -> None:
        match happening:
            case Overflowed():
                self._lose()
            case Moved(source, path, is_dir):
                self._out.move(source, path, is_dir=is_dir)
                self._look_at_ignore_file(source, path)
            case Touched(path, is_closed, has_content, is_new):
                out = self._out
                if is_new:
                    out.tails.pop(path, None)
                    is_closed = is_closed or out.source.is_settled(path)
                grows = not is_closed and path in out.tails
                self._book.touch(
                    path, now_s, is_closed=is_closed, has_content=has_content, is_tree=is_new, at_once=grows
                )
                self._look_at_ignore_file(path)
        if len(self._book.changes) > CHANGES_MAX:
            self._lose()

    def _look_at_ignore_file(self, *paths: bytes) -> None:
        if IGNORE_FILE.encode() in paths:
            is_left_out = excludes(self._workspace).names
            self._out.source.is_left_out = self._watches.is_left_out = is_left_out
            self._lose()

    def _lose(self) -> None:
        """Something may have been missed: nothing is whole before everything was compared."""
        first = self._book.give_up()
        if self._gap is None:
            self._gap = first
        else:
            self._book.release(first)
        if self._out.stream:
            self._comparison.start(self._clock())

    # --- what goes out

    async def _pump(self) -> None:
        stream, out = self._out.stream, self._out
        assert stream
        while True:
            out.news.clear()
            is_busy = self._put_changes(stream)
            out.feed()
            is_busy |= not is_busy and self._comparison.step(self._clock())
            out.send_folder_times()
            self._put_mark(stream)
            is_busy |= await stream.send_piece()
            await stream.drain()
            if is_busy:
                await asyncio.sleep(0)  # events and answers first
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):
                        await out.news.wait()

    def _put_changes(self, stream: Stream) -> bool:
        for done in range(TURN_CHANGES):
            change = self._book.next_ready(self._clock()) if stream.has_room else None
            if change is None:
                return done > 0
            try:
                self._out.send(change)
            except OSError:  # the disk does not say what is there: it is not gone for that
                self._out.again(change)
        return True

    def _put_mark(self, stream: Stream) -> None:
        floor = self._book.floor
        mark = Mark(floor, self._gap is None and floor >= self._whole_from, stream.wants_heard)
        if mark != stream.mark:
            stream.put(mark, 0, self._clock())
        self._seqs.reserve(self._book.seq)

    def _wait_s(self) -> float | None:
        times = (self._book.ready_at_s, self._out.folder_times.next_at_s, self._comparison.next_at_s)
        ahead = [each for each in times if each is not None]
        return max(0.0005, min(ahead) - self._clock()) if ahead else None

    # --- what comes back

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        stream = self._out.stream
        assert stream
        while True:
            match await read_frame(reader):
                case Ack() as ack:
                    stream.acked(ack)
                case Took() as took:
                    if transfer := stream.took(took):
                        self._out.complete(transfer)
                case Wants() as wants:
                    self._wanted(wants)
                case PassDone() as done:
                    self._pass_done(done)
                case Refused(reason):
                    raise TurnedAway(reason.decode(errors="replace"))
                case frame:
                    raise BadFrame(f"a receiver does not say {type(frame).__name__}")
            self._out.news.set()

    def _pass_done(self, done: PassDone) -> None:
        if not self._comparison.ended(done, self._clock(), is_blind=bool(self._watches.blind_because)):
            return
        if self._gap is not None:
            self._whole_from = self._gap
            self._book.release(self._gap)
            self._gap = None
        self._wake()

    def _wanted(self, wants: Wants) -> None:
        """Of a pass over a whole mirror: events had missed it, so the mirror was not whole after all."""
        found = self._out.wanted(wants, seq=self._gap)
        if found and self._gap is None:
            self._whole_from = self._book.seq

    def _confirmed(self, sent: OnItsWay) -> None:
        self._has_progressed = True
        if sent.seq and not sent.is_void:
            self._ack(sent)
        if sent.mark and not sent.is_void:
            self._acked, self._acked_whole = sent.mark.seq, sent.mark.is_whole
            self._wake()

    # --- how it stands, and the barrier

    @property
    def standing(self) -> Sync:
        now_s, stream = self._clock(), self._out.stream
        open_changes = [*self._book.changes.values(), *self._out.held]
        since = [change.since_s for change in open_changes]
        on_its_way = [sent for sent in stream.on_its_way if sent.seq] if stream else []
        since += [sent.since_s for sent in on_its_way]
        role = self._epoch.read()
        return Sync(
            epoch=max(self._acked_epoch, 0),
            seq=self._acked,
            root=self._comparison.root,
            lag_s=None if self._gap is not None else round(now_s - min(since), 3) if since else 0.0,
            backlog_bytes=stream.bytes_on_their_way if stream else 0,
            backlog_files=len(open_changes) + len(on_its_way),
            is_whole=self._acked_whole and self._gap is None,
            peer=role.view.cand if role.label == role.view.standby else role.view.mirror or role.view.standby,
        )

    async def wait(self, timeout_s: float, *, compares: bool = False) -> int:
        """Until everything that had changed before this call is on the attached standby, durable; the number of it.

        The kernel tells no write to memory that a file is mapped to, nor, of a file with several names, the names that
        it was not written by: `compares` waits for a pass over everything too, which finds these. What is mapped is
        written back before it, and compared by content where its time may not tell.
        Raises `NotInSync` when no standby is attached, or not within `timeout_s`.
        """
        self._require_mirror()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if compares:
                    self._comparison.written_back(await asyncio.to_thread(let_stores_be_told, self._workspace))
                number = self._comparison.begun + 1
                while compares and self._comparison.done < number:
                    self._comparison.put_off(self._clock())
                    if self._comparison.begun < number and self._out.stream:
                        self._comparison.start(self._clock())
                    await self._woken()
                wanted = self._up_to_now()
                while not self._is_through(wanted):
                    await self._woken()
                role = self._require_mirror()
                if role.view.epoch == self._acked_epoch:
                    return wanted
        under_way = "it is still being sent" if self._gap is None else "everything is still being compared"
        raise NotInSync(f"not everything is on the standby after {timeout_s:g} s: {self.trouble or under_way}")

    def number(self, above: int) -> int:
        """For a snapshot that has read everything: no change that it may hold has a higher number, and none that comes
        later has it. The standby passes it as soon as it has them all."""
        self._book.seq = max(self._up_to_now(), above + 1)
        self._seqs.reserve(self._book.seq)
        self._out.news.set()
        return self._book.seq

    def _up_to_now(self) -> int:
        """The number of the newest change: nothing that happened before this call has a later one."""
        now_s = self._clock()
        for happening in self._watches.read_all(now_s):
            self._happened(happening, now_s)
        for path in self._out.unchecked:
            self._book.touch(path, now_s)
        self._out.unchecked.clear()
        self._book.hurry(now_s)
        self._out.news.set()
        return self._book.seq

    async def _woken(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _is_through(self, seq: int) -> bool:
        return self._acked_whole and self._gap is None and self._acked >= seq

    def _require_mirror(self) -> Role:
        role = self._epoch.read()
        if not role.may_acknowledge:
            raise NotInSync("no standby is attached: what is saved here is safe in the next snapshot, and not before")
        return role


async def _welcome(reader: asyncio.StreamReader) -> Welcome:
    match await read_frame(reader):
        case Welcome() as welcome:
            return welcome
        case Refused(reason):
            raise TurnedAway(reason.decode(errors="replace"))
        case frame:
            raise BadFrame(f"a receiver does not begin with {type(frame).__name__}")
