"""Who decides that something goes wrong: the seed, a script (sweep and shrinking), or a directed run.

Every decision has a name: (knob, the how-manieth time this knob was asked). Draws of one knob do not depend on the
others, so a list of decisions replays a run exactly, and leaving one out leaves the others as they were.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from tests.simulation.knobs import BY_NAME, KNOBS

ON_WITH = 0.5
DIRECTED_STRIKES = 3
OF_CALLS = frozenset(
    knob.name for knob in KNOBS if knob.where in ("call", "store", "market", "objects", "mail", "chat")
)
"""Decided by the number of the call of a port; the others by how often they were asked."""
NOTHING: frozenset[str] = frozenset()
NOTHING_DIRECTED: frozenset[tuple[str, str]] = frozenset()
PHASES = ("down", "boot", "restoring", "up", "freezing", "standby", "handover", "ended")
"""Columns of the coverage matrix: an instance's phase when the fault struck (`up` before it serves = restoring)."""

Hit = tuple[str, int]
Phases = Callable[[], Iterable[str]]


def _nowhere() -> Iterable[str]:
    return ()


@dataclass
class Strike:
    """A fault that happens; what it draws depends on its own name alone."""

    knob: str
    count: int
    rng: random.Random

    def length_s(self) -> float:
        """A fat tail up to the knob's longest."""
        return float(self.rng.random() ** 3 * BY_NAME[self.knob].longest_s)


@dataclass
class Faults:
    """`rates`: the knobs that are on. `script`: exactly these hits. `directed`: cells of the matrix, in one phase."""

    seed: int
    rates: dict[str, float]
    script: frozenset[Hit] | None = None
    directed: frozenset[tuple[str, str]] = NOTHING_DIRECTED
    active: bool = True
    on: frozenset[str] = frozenset()
    """The knobs that can strike at all."""
    hits: list[Hit] = field(default_factory=list)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    _asked: Counter[str] = field(default_factory=Counter)
    _rngs: dict[str, random.Random] = field(default_factory=dict)
    _struck: Counter[str] = field(default_factory=Counter)
    _aims: frozenset[str] = NOTHING
    """The knobs of the directed cells, ..."""
    _calls_aimed: frozenset[str] = NOTHING
    """... and those of them that the number of a call decides."""
    _scripted: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    _next: list[tuple[float, str]] = field(default_factory=list)
    """(number of the call that it strikes next, knob), as a heap."""

    def __post_init__(self) -> None:
        self.on = frozenset(self.rates) if self.script is None else frozenset(knob for knob, _ in self.script)
        for knob, number in self.script or ():
            if knob in OF_CALLS:
                self._scripted[number].add(knob)
        self._aims = frozenset(knob for knob, _ in self.directed)
        self._calls_aimed = self._aims & OF_CALLS
        drawn = OF_CALLS & self.rates.keys() - self._aims
        self._next = [(self._gap(name), name) for name in sorted(drawn)]
        heapq.heapify(self._next)

    @classmethod
    def swarm(cls, seed: int, *, without: Collection[str] = (), stirred: Collection[str] = ()) -> Faults:
        """Each knob on with probability ON_WITH, then a rate: low ones are likelier than high ones.

        `stirred` knobs are on in any case, at their highest rate.
        """
        rng = random.Random(f"swarm:{seed}")
        rates: dict[str, float] = {}
        for knob in KNOBS:
            on, rate = rng.random() < ON_WITH, knob.most * rng.random() ** 1.5
            if on and knob.name not in without:
                rates[knob.name] = rate
            if knob.name in stirred:
                rates[knob.name] = knob.most
        return cls(seed, rates)

    def at_call(self, number: int) -> Collection[str]:
        """The knobs that may strike this call of a port; asked once for every number, in order."""
        if not self.active:
            return NOTHING
        if self.script is not None:
            return self._scripted.get(number, NOTHING)
        found = set(self._calls_aimed)
        while self._next and self._next[0][0] <= number:
            _, name = self._next[0]
            found.add(name)
            heapq.heapreplace(self._next, (number + 1 + self._gap(name), name))
        return found

    def _gap(self, name: str) -> float:
        """How many calls it spares: as if each were asked, in one draw."""
        rate = self.rates[name]
        if rate <= 0.0 or rate >= 1.0:
            return 0.0 if rate else math.inf
        return math.log(1.0 - self._rng(name).random()) // math.log(1.0 - rate)

    @property
    def has_hit_its_cells(self) -> bool:
        """Of a directed run: nothing is left that it was made for."""
        return bool(self.directed) and self.directed <= self.cells.keys()

    def strike(self, name: str, phases: Phases = _nowhere, count: int | None = None) -> Strike | None:
        """Does this fault happen here? `count` = of a knob of calls: the number that `at_call` named it for."""
        if name not in self.on or not self.active:
            return None
        if count is None:
            count = self._asked[name]
            self._asked[name] += 1
        if not self._decides(name, count, phases):
            return None
        self.hits.append((name, count))
        self._struck[name] += name in self._aims
        for phase in phases():
            self.cells[name, phase] += 1
        return Strike(name, count, random.Random(f"{self.seed}:{name}:{count}"))

    def _decides(self, name: str, count: int, phases: Phases) -> bool:
        if self.script is not None:
            return (name, count) in self.script
        if name in self._aims:
            return self._is_directed_here(name, phases)
        return name in OF_CALLS or self._rng(name).random() < self.rates[name]

    def _is_directed_here(self, name: str, phases: Phases) -> bool:
        """Strikes a few times, not at the first chance only: the seed chooses."""
        if self._struck[name] >= DIRECTED_STRIKES or not any((name, phase) in self.directed for phase in phases()):
            return False
        return self._rng(name).random() < 0.5

    def _rng(self, name: str) -> random.Random:
        rng = self._rngs.get(name)
        if rng is None:
            rng = self._rngs[name] = random.Random(f"{self.seed}:{name}")
        return rng
