"""Worker processes of the engine: forked before there is much to copy, and each with an interpreter's lock.

A worker talks to the engine through one pipe, in turn: it is sent a task, says what it needs or has, and waits.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import socketpair
from typing import Any, TypeVar

from common.errors import DumontError, SnapshotError
from common.tether import die_with

MAX_WORKERS = 4
"""About 450 MB/s each: more than a line of 10 Gbit/s takes, and the machine is the user's."""
WORTH_A_WORKER_BYTES = 32 << 20
SIZE_BYTES = 4
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""malloc.h of glibc"""
KEPT_BYTES = 64 << 20


class Pipe:
    """One end: whole messages, both ways. It is its own process's alone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def send(self, message: Any) -> None:
        """Raises OSError when nobody is there to hear it."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(len(content).to_bytes(SIZE_BYTES, "little") + content)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def recv(self) -> Any:
        """Waits for the next message; raises EOFError when none will come any more."""
        return pickle.loads(self._read(int.from_bytes(self._read(SIZE_BYTES), "little")))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self, size: int) -> bytearray:
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            got = os.readv(self._fd, [rest])
            if not got:
                raise EOFError
            rest = rest[got:]
        return content


Main = Callable[[Pipe], None]
T = TypeVar("T")


class Crew:
    """The workers by number."""

    def __init__(self, pipes: list[Pipe]) -> None:
        self._pipes = pipes
        self.count = len(pipes)
        self._quiet_s = 0.0
        self.idle = set(range(self.count))

    @property
    def busy(self) -> bool:
        return len(self.idle) < self.count

    def send(self, worker: int, message: Any) -> None:
        try:
            self._pipes[worker].send(message)
        except OSError:
            raise SnapshotError("a worker of the engine has ended") from None

    def give(self, worker: int, task: Any) -> None:
        """A task to a worker that is idle; whoever hears that it is done adds it to `idle` again."""
        self.idle.remove(worker)
        self.send(worker, task)

    def messages(self, other: int, timeout_s: float, *, tick_s: float | None = None) -> Iterator[tuple[int, Any]]:
        """Waits until a worker says something, or `other` (a descriptor) can be read; raises what a worker raised, and
        `SnapshotError` after `timeout_s` of silence. It waits no longer than `tick_s` at a time."""
        numbers = {pipe.fileno(): number for number, pipe in enumerate(self._pipes)}
        poll = select.poll()
        for fd in (*numbers, other):
            poll.register(fd, select.POLLIN)
        waits_s = min(tick_s or timeout_s, timeout_s)
        heard = poll.poll(waits_s * 1000)
        self._quiet_s = 0.0 if heard else self._quiet_s + waits_s
        if self._quiet_s >= timeout_s:
            raise SnapshotError(f"nothing was read and no object finished for {timeout_s:.0f} s")
        for fd, _ in heard:
            if fd != other:
                yield numbers[fd], self.answer(numbers[fd])

    def last_answer(self) -> Any:
        """Of a crew of one, which ends with it."""
        message = self.answer(0)
        self._pipes[0].close()
        return message

    def answer(self, worker: int) -> Any:
        """What that worker says next; raises what it raised."""
        try:
            message = self._pipes[worker].recv()
        except (EOFError, OSError):
            raise SnapshotError("a worker of the engine was killed") from None
        if isinstance(message, BaseException):
            raise message
        return message


@contextmanager
def crew(count: int, main: Main) -> Iterator[Crew]:
    """`count` processes that run `main`; none is left when the block is: what they have not said by then is lost."""
    processes: list[int] = []
    pipes: list[Pipe] = []
    engine = os.getpid()
    try:
        for _ in range(count):
            ours, theirs = (Pipe(end.detach()) for end in socketpair())
            pipes.append(ours)
            process = os.fork()
            if not process:
                _run(main, theirs, pipes, engine)
            theirs.close()
            processes.append(process)
        yield Crew(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(process, 0)


@contextmanager
def apart(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """The work is begun at once in a process of its own; the function given waits, and gives or raises what came of it.

    Where there is one processor it is done here, when it is asked for.
    """
    if most() == 1:
        yield work
        return
    with crew(1, lambda pipe: pipe.send(work())) as one:
        yield one.last_answer


@contextmanager
def telling(work: Callable[[], Iterator[T]]) -> Iterator[Iterator[T]]:
    """As `apart`, for work that says more than one thing: each is had when it is asked for. Its end is not told: who
    listens knows by what is said whether more will come.
    """
    if most() == 1:
        yield work()
        return

    def tell(pipe: Pipe) -> None:
        for said in work():
            pipe.send(said)
        os._exit(0)  # it has said all, and holds what its work took

    with crew(1, tell) as one:
        yield iter(lambda: one.answer(0), object())


def most() -> int:
    """How many workers this machine has room for."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


def worth(work_bytes: int, files: int) -> int:
    """How many workers a task of that size pays for; 0 when there is nothing to do."""
    if not files:
        return 0
    return max(1, min(most(), work_bytes // WORTH_A_WORKER_BYTES))


def _run(main: Main, pipe: Pipe, of_others: list[Pipe], engine: int) -> None:
    """The worker's whole life. What it raises goes to the engine; a pipe that the engine has closed is its end."""
    try:
        die_with(engine)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _keep_memory()
        for other in of_others:
            other.close()
        _tell(main, pipe)
    finally:
        os._exit(0)  # nothing of the engine's own end happens here


def _tell(main: Main, pipe: Pipe) -> None:
    try:
        main(pipe)
        pipe.recv()  # a worker that has done its part stays until all have: its end would look like a failure
    except EOFError:
        return
    except (DumontError, OSError) as error:
        pipe.send(error)
    except Exception as error:  # noqa: BLE001 - the engine raises it, with the worker's words
        pipe.send(SnapshotError(f"a worker of the engine failed: {error!r}"))


def _keep_memory() -> None:
    """Buffers of some MB are used again and again: without this the C library gives each back to the kernel, which
    clears it anew (measured: a third of a worker's time). Another C library does not know these words.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
