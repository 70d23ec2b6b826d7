"""Runs as values: what to run, in which process, and what came of it."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TypeVar

from jwt.algorithms import HMACAlgorithm

from common.domain.model import Model
from tests.simulation.faults import Faults, Hit
from tests.simulation.knobs import OF_CREATES, OF_PAIRS, OF_SLACK, OF_SNAPSHOTS
from tests.simulation.plan import LONG, MANY, Plan
from tests.simulation.world import Outcome, World

PROCESSES = 2
GARBAGE_LOOKED_FOR_AT = 50_000
"""Objects. A run makes some 100,000 that stay until it is over, and is itself a circle."""
EAGER_S = (20.0, 60.0)
"""Between two whims of a directed run's user."""
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Run:
    """One world. `script`: exactly those faults; `directed`: cells of the matrix; neither: the seed's own mix."""

    seed: int
    script: frozenset[Hit] | None = None
    without: frozenset[str] = frozenset()
    stirred: frozenset[str] = frozenset()
    directed: tuple[tuple[str, str], ...] = ()
    """All of one phase."""
    also: tuple[tuple[str, float], ...] = ()
    """Of a directed run: knobs that lead to the cell."""
    story: str = ""
    """One of `plan.STORIES`: the users follow it."""
    over_http: bool = False
    long: bool = False
    """Looks for one thing, which needs its time, as a directed run does."""

    def faults(self) -> Faults:
        if self.script is not None:
            return Faults(self.seed, {}, self.script)
        if self.directed:
            rates = dict(self.also) | {knob: 1.0 for knob, _ in self.directed}
            return Faults(self.seed, rates, directed=frozenset(self.directed))
        plan = self.plan()
        without = self.without if plan.in_slack else self.without | OF_SLACK
        without = without if plan.with_standby else without | OF_PAIRS
        return Faults.swarm(self.seed, without=without, stirred=self.stirred)

    def plan(self) -> Plan:
        if self.story:
            return Plan.of_story(self.story)
        lives = LONG if self.long or self.directed else MANY
        plan = Plan.of(self.seed, lives, in_slack=self._needs(OF_SLACK), with_standby=self._needs_a_standby())
        if any(knob in OF_CREATES for knob, _ in self.directed):
            plan = replace(plan, pool_size=1)
        if self.directed_phase == "handover":  # it is short: there and back, and nothing that ends it
            eager = tuple(replace(owned, always="wake", thinks_s=EAGER_S) for owned in plan.owned)
            plan = replace(plan, owned=eager)
        if self.directed_phase == "ended":
            # who discards waits for no snapshot: one that is under way ends afterwards
            verb = "discard" if any(knob in OF_SNAPSHOTS for knob, _ in self.directed) else "terminate"
            return replace(plan, owned=tuple(replace(owned, always=verb) for owned in plan.owned))
        return plan

    def _needs(self, knobs: frozenset[str]) -> bool:
        named = {*self.stirred, *(name for name, _ in self.also), *(name for name, _ in self.script or ())}
        return not knobs.isdisjoint({*named, *(knob for knob, _ in self.directed)})

    def _needs_a_standby(self) -> bool:
        return self._needs(OF_PAIRS) or self.directed_phase in ("standby", "handover")

    @property
    def directed_phase(self) -> str | None:
        return self.directed[0][1] if self.directed else None

    def reproduced_by(self) -> str:
        words = f"make simulate SEEDS=1 SEED={self.seed}"
        words += f" STORY={self.story}" if self.story else ""
        words += f" STIRRED={','.join(sorted(self.stirred))}" if self.stirred else ""
        words += " HTTP=1" if self.over_http else ""
        words += " LONG=1" if self.long else ""
        if self.directed:
            words += f" CELLS={'+'.join(knob for knob, _ in self.directed)},{self.directed_phase}"
            words += f" ALSO={','.join(f'{knob}:{rate}' for knob, rate in self.also)}"
        if self.without:
            words += f" WITHOUT={','.join(sorted(self.without))}"
        if self.script is not None:
            words += f" FAULTS={','.join(f'{knob}@{count}' for knob, count in sorted(self.script))}"
        return words


_folders: list[Path] = []


@contextmanager
def disk() -> Iterator[Path]:
    """Where agents keep their state: memory where the machine has a file system of it, for each write is flushed."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="dumont-sim-", dir=memory if os.access(memory, os.W_OK) else None))
    _folders.append(folder)
    try:
        yield folder
    finally:
        _folders.pop()
        shutil.rmtree(folder, ignore_errors=True)


def folder() -> Path:
    return _folders[-1]


def do(run: Run) -> Outcome:
    """Inside `disk()`."""
    if run.over_http:
        from tests.simulation import over_http  # it stands on this module

        return over_http.do(run)
    return World(run.seed, run.faults(), run.plan(), folder()).run()


def do_alone(run: Run) -> Outcome:
    with disk():
        return do(run)


def in_parallel(work: Callable[[A], B], items: Iterable[A], *, chunk: int = 8) -> Iterator[B]:
    """In PROCESSES forked processes, as they come; one whole process per item's chunk, so nothing leaks for long."""
    with forked() as pool:
        yield from pool.imap_unordered(work, items, chunksize=chunk)


def forked(*, one_task_each: bool = False) -> Pool:
    """Processes that look for garbage a few times a run, and never among what was there before they began."""
    context = multiprocessing.get_context("fork")
    _build_models()
    _look_at_secrets_once()
    return context.Pool(PROCESSES, initializer=look_for_little, maxtasksperchild=1 if one_task_each else None)


def _build_models(model: type[Model] = Model) -> None:
    """Here once, which each process would have to do for itself."""
    for each in model.__subclasses__():
        each.model_rebuild()
        _build_models(each)


def _look_at_secrets_once() -> None:
    """The library asks of a secret, each time it is used, whether it is a public key: a 25th of all that is done."""
    setattr(HMACAlgorithm, "prepare_key", functools.cache(HMACAlgorithm.prepare_key))  # noqa: B010 - as it was, remembered


def look_for_little() -> None:
    """Of this process: see GARBAGE_LOOKED_FOR_AT."""
    gc.freeze()
    gc.set_threshold(GARBAGE_LOOKED_FOR_AT)


@dataclass
class Watch:
    started_at: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return round(time.monotonic() - self.started_at, 1)

    def cpu_seconds(self) -> float:
        """Of this process and of those that have ended."""
        used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return round(sum(each.ru_utime + each.ru_stime for each in used), 1)

    def __str__(self) -> str:
        return f"{self.seconds()} s, {self.cpu_seconds()} CPU s"
