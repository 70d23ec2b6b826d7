"""The sweep without its beginnings: one scripted life runs, and each of its calls is a point from which others fork.

A run with a single fault is, up to that fault, the run without any. So the life runs once, and where a call may go
wrong the process forks: the child has the fault and runs on to the end. The parent goes on as if nothing had been.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.simulation.faults import Faults, Hit
from tests.simulation.runs import PROCESSES, Run, disk, look_for_little
from tests.simulation.world import Outcome, World

BROKEN = 70
"""Exit code of a child that could not tell its outcome."""


def of(run: Run, hits: Mapping[int, Sequence[Hit]]) -> Iterator[tuple[Run, Outcome]]:
    """Each of these faults alone, in the life of `run`, which has none. `hits`: the number of a call -> its faults."""
    look_for_little()
    with disk() as folder:
        forks = Forks(folder)
        (folder / "trunk").mkdir()
        with chdir(folder / "trunk"):
            faults = Branching(run.seed, {}, frozenset(), hits_at=hits, forks=forks)
            # the paths of a world are relative to where its process is: a child goes to a copy
            outcome = World(run.seed, faults, run.plan(), Path()).run()
            if forks.hit is not None:
                forks.report(outcome)
        forks.wait_for_all()
        for hit, file in forks.told:
            yield replace(run, script=frozenset({hit})), pickle.loads(file.read_bytes())


@dataclass
class Forks:
    """The children of one life."""

    folder: Path
    hit: Hit | None = None
    """The fault that this process has; None in the parent."""
    told: list[tuple[Hit, Path]] = field(default_factory=list)
    _running: int = 0

    def fork(self, hit: Hit) -> bool:
        """True in the child. At most PROCESSES of them run at a time."""
        if self._running == PROCESSES:
            self._wait()
        self.told.append((hit, self.folder / f"{len(self.told)}.outcome"))
        home = self.folder / f"branch{len(self.told)}"
        shutil.copytree(Path.cwd(), home)  # before the fork: the parent does not wait
        gc.freeze()
        sys.stdout.flush()
        if os.fork():
            self._running += 1
            return False
        self.hit = hit
        sys.excepthook = _die
        os.chdir(home)
        return True

    def report(self, outcome: Outcome) -> None:
        """In the child: the last thing that it does."""
        self.told[-1][1].write_bytes(pickle.dumps(outcome))
        shutil.rmtree(Path.cwd(), ignore_errors=True)
        os._exit(0)

    def wait_for_all(self) -> None:
        while self._running:
            self._wait()

    def _wait(self) -> None:
        _, status = os.wait()
        self._running -= 1
        if status:
            raise RuntimeError(f"a branch of the sweep ended with status {status}")


def _die(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """A child never returns into the parent's program."""
    traceback.print_exception(kind, error, trace)  # type: ignore[arg-type]
    os._exit(BROKEN)


@dataclass
class Branching(Faults):
    """No fault, until a fork makes it one."""

    hits_at: Mapping[int, Sequence[Hit]] = field(default_factory=dict)
    forks: Forks | None = None

    def at_call(self, number: int) -> frozenset[str]:
        assert self.forks is not None
        if self.forks.hit is None and self.active:
            for hit in self.hits_at.get(number, ()):
                if self.forks.fork(hit):
                    self.script = frozenset({hit})
                    self.__post_init__()
                    break
        return frozenset(super().at_call(number))
