"""Every mutant in a process of its own: how many seeds until an invariant breaks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from tests.simulation import sweep
from tests.simulation.known import Known, known_first
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.runs import Run, disk, do, forked

SEEDS = 300
_stories: list[Run] = []
"""Of the sweep over the sound product: the numbers of its calls."""
_known: dict[str, int] = {}
CRASHED = "I0"
"""A mutant that only crashes is not caught: it proves nothing about an invariant, and its replacement needs mending."""


def all_mutants(known: Known, say: Callable[[str], None]) -> dict[str, int | None]:
    """Name -> a seed that caught it: the known one or the first (0 = the sweep did, None = it escaped)."""
    caught: dict[str, int | None] = {}
    _stories.extend(sweep.runs())
    _known.update(known.caught)
    with forked(one_task_each=True) as pool:
        for name, seed, violation in pool.imap_unordered(catch, range(len(MUTANTS)), chunksize=1):
            caught[name] = seed
            by = {None: "ESCAPED", 0: "the sweep"}.get(seed, f"seed {seed}")
            say(f"mutant {name:<32} {by:<10} {violation[:160]}")
    return caught


def sound(caught: dict[str, int | None], ran: range) -> list[Run]:
    """The runs that caught, for the product as it is: one that is red there too says nothing of its mutant.

    Without the seeds that `ran` already, as they are.
    """
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    runs = [_run(seed, by_name[name]) for name, seed in caught.items() if seed]
    return [run for run in runs if run != Run(run.seed) or run.seed not in ran]


def _run(seed: int, mutant: Mutant) -> Run:
    return Run(seed, stirred=mutant.stirred, long=mutant.is_long)


def catch(index: int) -> tuple[str, int | None, str]:
    mutant = MUTANTS[index]
    mutant.plant()
    tried = known_first({_known.get(mutant.name, 0)}, range(1, SEEDS + 1))
    seeds = (_run(seed, mutant) for seed in tried)
    with disk():
        for run in chain(seeds, _stories):
            outcome = do(run)
            if outcome.violations and outcome.violations[0].startswith(CRASHED):
                return mutant.name, None, f"it does not fit the product any more: {outcome.violations[0]}"
            if outcome.violations:
                return mutant.name, 0 if run.story else run.seed, outcome.violations[0]
    return mutant.name, None, ""
