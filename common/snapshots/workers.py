"""Worker processes of the engine: forked, so that they see all it has prepared, and each with an interpreter's lock.

A worker talks to the engine through one pipe, in turn: it is sent a task, says what it needs or has, and waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

from common.errors import DumontError, SnapshotError

MAX_WORKERS = 4
"""About 450 MB/s each: more than a line of 10 Gbit/s takes, and the machine is the user's."""
WORTH_A_WORKER_BYTES = 32 << 20
END_S = 10
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""

Main = Callable[[Connection], None]


class Crew:
    """The workers by number."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes
        self.count = len(pipes)
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

    def messages(self, other: int, timeout_s: float) -> Iterator[tuple[int, Any]]:
        """Waits until a worker says something, or `other` (a descriptor) can be read; raises what a worker raised."""
        numbers = {pipe: number for number, pipe in enumerate(self._pipes)}
        heard = wait([*self._pipes, other], timeout_s)
        if not heard:
            raise SnapshotError(f"nothing was read and no object finished for {timeout_s:.0f} s")
        for ready in heard:
            if not isinstance(ready, Connection):
                continue
            try:
                message = ready.recv()
            except (EOFError, OSError):
                raise SnapshotError("a worker of the engine was killed") from None
            if isinstance(message, BaseException):
                raise message
            yield numbers[ready], message


@contextmanager
def crew(count: int, main: Main) -> Iterator[Crew]:
    """`count` processes that run `main`; all of them have ended when the block is left."""
    context = get_context("fork")
    processes: list[ForkProcess] = []
    pipes: list[Connection] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run, args=(main, theirs, [*pipes, ours], os.getpid()), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield Crew(pipes)
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(END_S)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.kill()
            process.join()


def worth(work_bytes: int, files: int) -> int:
    """How many workers a task of that size pays for; 0 when there is nothing to do."""
    if not files:
        return 0
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)), work_bytes // WORTH_A_WORKER_BYTES))


def die_with(parent: int) -> None:
    """The kernel ends this process with its parent; one whose parent died before it asked ends itself."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run(main: Main, pipe: Connection, of_others: list[Connection], engine: int) -> None:
    """What it raises goes to the engine; a pipe that the engine has closed is the end of the work."""
    die_with(engine)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in of_others:
        other.close()
    try:
        main(pipe)
        pipe.recv()  # a worker that has done its part stays until all have: its end would look like a failure
    except EOFError:
        return
    except (DumontError, OSError) as error:
        pipe.send(error)
    except Exception as error:  # noqa: BLE001 - the engine raises it, with the worker's words
        pipe.send(SnapshotError(f"a worker of the engine failed: {error!r}"))
