"""Who decides that something goes wrong: the seed, a script (sweep and shrinking), or a directed run.

Every decision has a name: (knob, the how-manieth time this knob was asked). Draws of one knob do not depend on the
others, so a list of decisions replays a run exactly, and leaving one out leaves the others as they were.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from tests.simulation.knobs import BY_NAME, KNOBS

ON_WITH = 0.5
DIRECTED_STRIKES = 3
PHASES = ("down", "boot", "restoring", "up", "freezing", "ended")
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
    """`rates`: the knobs that are on. `script`: exactly these hits. `directed`: one cell of the matrix."""

    seed: int
    rates: dict[str, float]
    script: frozenset[Hit] | None = None
    directed: tuple[str, str] | None = None
    active: bool = True
    on: frozenset[str] = frozenset()
    """The knobs that can strike at all."""
    hits: list[Hit] = field(default_factory=list)
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    _asked: Counter[str] = field(default_factory=Counter)
    _rngs: dict[str, random.Random] = field(default_factory=dict)
    _struck: int = 0

    def __post_init__(self) -> None:
        self.on = frozenset(self.rates) if self.script is None else frozenset(knob for knob, _ in self.script)

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

    def strike(self, name: str, phases: Phases = _nowhere, count: int | None = None) -> Strike | None:
        """Does this fault happen here? `count` overrides how the decision is counted: calls are numbered as one row."""
        if name not in self.on or not self.active:
            return None
        if count is None:
            count = self._asked[name]
            self._asked[name] += 1
        if not self._decides(name, count, phases):
            return None
        self.hits.append((name, count))
        self._struck += self.directed is not None and name == self.directed[0]
        for phase in phases():
            self.cells[name, phase] += 1
        return Strike(name, count, random.Random(f"{self.seed}:{name}:{count}"))

    def _decides(self, name: str, count: int, phases: Phases) -> bool:
        if self.script is not None:
            return (name, count) in self.script
        if self.directed is not None and name == self.directed[0]:
            return self._is_directed_here(name, phases)
        rng = self._rngs.get(name)
        if rng is None:
            rng = self._rngs[name] = random.Random(f"{self.seed}:{name}")
        return rng.random() < self.rates[name]

    def _is_directed_here(self, name: str, phases: Phases) -> bool:
        """Strikes a few times, not at the first chance only: the seed chooses."""
        assert self.directed is not None
        if self.directed[1] not in phases() or self._struck >= DIRECTED_STRIKES:
            return False
        rng = self._rngs.setdefault(name, random.Random(f"{self.seed}:{name}"))
        return rng.random() < 0.5
