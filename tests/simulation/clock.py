"""A virtual clock and plain sync code on it: a heap of events, and one greenlet per program that runs."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Killed(BaseException):
    """The process ends here. A BaseException, so that no handler of the product can hide it."""


class Task(greenlet):
    """One program: an invocation of a function, a host's agent, a user.

    Its own greenlet class: what runs can be asked `getcurrent()` for whose work it is.
    """

    def __init__(self, loop: Loop, run: Callable[[], Any], name: str, **facts: Any) -> None:
        super().__init__(parent=loop.hub)
        self.loop, self.name, self.facts = loop, name, facts
        self.program = run
        self.is_over = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.waiting: list[Task] = []

    def run(self) -> None:
        try:
            self.result = self.program()
        except Killed as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - how a program ends is its starter's business
            self.error = error
        self._over()

    def kill(self) -> None:
        """As SIGKILL does: nothing of it runs on, no `finally` either."""
        if not self.is_over:
            self.error = Killed(self.name)
            self.loop.graveyard.append(self)
            self._over()

    def _over(self) -> None:
        self.is_over = True
        self.loop.programs.discard(self)
        for task in self.waiting:
            self.loop.at(self.loop.now, task)
        self.waiting = []


class Loop:
    """Time passes only from event to event. `now` is in seconds since START."""

    def __init__(self) -> None:
        self.hub = getcurrent()
        self.now = 0.0
        self.events = 0
        self.stopped = False
        self.graveyard: list[Task] = []
        """Killed programs: kept, because a collected greenlet would run its `finally` blocks."""
        self._heap: list[tuple[float, int, Any]] = []
        self._count = 0
        self.programs: set[Task] = set()
        """Those that are not over."""
        self._is_over = False
        self._until = 0.0
        """`run` returns then."""

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def at(self, when: float, what: Callable[[], Any] | Task) -> None:
        """Run a callback in the hub, or switch to a task that sleeps."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what))

    def after(self, seconds: float, what: Callable[[], Any] | Task) -> None:
        self.at(self.now + seconds, what)

    def spawn(self, run: Callable[[], Any], name: str, *, delay: float = 0.0, **facts: Any) -> Task:
        task = Task(self, run, name, **facts)
        self.programs.add(task)
        self.after(delay, task)
        return task

    def sleep(self, seconds: float) -> None:
        """Called inside a task: let the others run meanwhile. Where none is due, only the time passes."""
        if self._is_over:
            raise GreenletExit
        when, heap = self.now + seconds, self._heap
        if when <= self._until and (not heap or heap[0][0] > when) and not self.stopped:
            self.now = when
            self.events += 1
            return
        self.after(seconds, getcurrent())  # type: ignore[arg-type]
        self.hub.switch()

    def join(self, task: Task, timeout_s: float) -> bool:
        """Called inside a task: wait for another one; False = it was not over in time."""
        if task.is_over or self._is_over:
            return task.is_over
        until, me = self.now + timeout_s, getcurrent()
        task.waiting.append(me)  # type: ignore[arg-type]
        self.at(until, lambda: self._wake_late(task, me))
        self.hub.switch()
        return task.is_over

    def _wake_late(self, task: Task, me: Any) -> None:
        if me in task.waiting:
            task.waiting.remove(me)
            if not me.is_over:
                me.switch()

    def vanish(self) -> None:
        """Called inside a task: it is gone, as by SIGKILL, and never comes back."""
        getcurrent().kill()  # type: ignore[attr-defined]
        self.hub.switch()

    def end(self) -> None:
        """Every program ends where it stands: one that is suspended keeps its whole world in memory."""
        self.stopped = self._is_over = True
        for task in [*self.programs, *self.graveyard]:
            if not task.dead:
                task.throw(GreenletExit)
        self.programs.clear()
        self.graveyard.clear()
        self._heap.clear()

    def run(self, until: float) -> None:
        """Until that time, or until somebody sets `stopped`."""
        heap, self._until = self._heap, until
        while heap and not self.stopped and heap[0][0] <= until:
            when, _, what = heapq.heappop(heap)
            self.now = when
            self.events += 1
            if not isinstance(what, Task):
                what()
            elif not what.is_over:
                what.switch()
        if not self.stopped:
            self.now = max(self.now, until)
