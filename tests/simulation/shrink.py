"""From a red run to the few faults that make it red: knobs away one by one, then the list of hits halved and halved."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.faults import Hit
from tests.simulation.knobs import KNOBS
from tests.simulation.runs import Run, do_alone
from tests.simulation.world import Outcome

TRIES_MAX = 120


def shrink(run: Run, outcome: Outcome) -> tuple[Run, Outcome]:
    """The smallest red run found within TRIES_MAX; the same invariant must break in it."""
    budget = Budget(_code(outcome))
    if run.script is None and not run.directed:
        run, outcome = _without_knobs(run, outcome, budget)
    scripted = replace(run, script=frozenset(outcome.hits), without=frozenset(), directed=(), also=())
    found = budget.is_red(scripted)
    if found is None:
        return run, outcome
    return _fewer_hits(scripted, found, budget)


class Budget:
    def __init__(self, code: str) -> None:
        self._code, self.left = code, TRIES_MAX

    def is_red(self, run: Run) -> Outcome | None:
        if self.left <= 0:
            return None
        self.left -= 1
        outcome = do_alone(run)
        return outcome if outcome.violations and _code(outcome) == self._code else None


def _code(outcome: Outcome) -> str:
    return outcome.violations[0].split()[0]


def _without_knobs(run: Run, outcome: Outcome, budget: Budget) -> tuple[Run, Outcome]:
    for knob in KNOBS:
        if knob.name in {name for name, _ in outcome.hits}:
            fewer = replace(run, without=run.without | {knob.name})
            if found := budget.is_red(fewer):
                run, outcome = fewer, found
    return run, outcome


def _fewer_hits(run: Run, outcome: Outcome, budget: Budget) -> tuple[Run, Outcome]:
    """Delta debugging: leave out ever smaller parts of the list as long as it stays red."""
    hits: list[Hit] = sorted(outcome.hits)
    parts = 2
    while len(hits) > 1 and budget.left > 0:
        size = -(-len(hits) // parts)
        for start in range(0, len(hits), size):
            rest = hits[:start] + hits[start + size :]
            fewer = replace(run, script=frozenset(rest))
            if found := budget.is_red(fewer):
                run, outcome, hits, parts = fewer, found, rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(hits), parts * 2)
    return run, outcome
