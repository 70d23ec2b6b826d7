"""`python -m tests.simulation SEEDS=2000 [SEED=1]`: seeds, the sweep, the matrix and the mutants, judged and counted.

With SEEDS=1 one seed is replayed (WITHOUT=knob,... FAULTS=knob@n,... CELLS=knob+knob,phase STORY=race as a red run
prints them), and what is red is shrunk. MINUTES=45 runs as many seeds as that time gives, and nothing else, but not
fewer than AT_LEAST=20000: every second one with a few faults at their highest rates (STIRRED=knob,...).
LEARN=1 writes down which seeds caught mutants and reached cells: the next run tries those first.
The last line of stdout is JSON; the exit code is 1 when anything is red, empty or not caught.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from tests.simulation import catching, over_http, sweep
from tests.simulation.coverage import DIRECTED_SEEDS, RARE, Cell, Coverage, Directed, cells, directed
from tests.simulation.knobs import KNOBS
from tests.simulation.known import Known, known_first
from tests.simulation.mutants import MUTANTS
from tests.simulation.runs import Run, Watch, disk, do, in_parallel
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome

PAIRS = 200
HTTP_SEEDS = 200
PLAIN_SEEDS = 100
"""Run once more without faults, and compared."""
Ending = dict[str, tuple[str, int]]
RED_SHOWN_MAX = 5
SOAK_BATCH = 100


class Total:
    def __init__(self) -> None:
        self.watch, self.coverage = Watch(), Coverage()
        self.red: list[tuple[Run, Outcome]] = []
        self.counts: Counter[str] = Counter()
        self.seconds_of: dict[str, float] = {}

    def told(self, part: str) -> None:
        """That part is done: since the one before."""
        self.seconds_of[part] = round(self.watch.seconds() - sum(self.seconds_of.values()), 1)
        say(f"{part}: {self.watch}")

    def add(self, run: Run, outcome: Outcome, what: str, *, covers: bool = True) -> None:
        self.counts[what] += 1
        self.counts["events"] += outcome.events
        self.counts["kills"] += outcome.kills
        if covers:
            self.coverage.add(outcome)
        if outcome.violations:
            self.red.append((run, outcome))
            say(f"RED {outcome.violations[0][:300]}\n    {run.reproduced_by()}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(words: Iterable[str]) -> int:
    given = dict(word.split("=", 1) for word in words)
    if minutes := float(given.get("MINUTES", 0)):
        return soak(int(given.get("SEED", 1)), minutes, at_least=int(given.get("AT_LEAST", 0)))
    first, seeds = int(given.get("SEED", 1)), int(given.get("SEEDS", 2000))
    return replay(first, given) if seeds == 1 else everything(first, seeds, learns="LEARN" in given)


# --- one seed


def replay(seed: int, given: dict[str, str]) -> int:
    script = frozenset(_hit(text) for text in given["FAULTS"].split(",") if text) if "FAULTS" in given else None
    run = Run(
        seed,
        script=script,
        without=frozenset(given.get("WITHOUT", "").split(",")) - {""},
        directed=_cells(given["CELLS"]) if "CELLS" in given else (),
        also=tuple(
            (name, float(rate))
            for name, _, rate in (w.partition(":") for w in given.get("ALSO", "").split(","))
            if name
        ),
        stirred=frozenset(given.get("STIRRED", "").split(",")) - {""},
        story=given.get("STORY", ""),
        over_http="HTTP" in given,
        long="LONG" in given,
    )
    total, (_, outcome) = Total(), work(run)
    total.add(run, outcome, "seeds")
    if outcome.violations and "FAULTS" not in given:
        small, found = shrink(run, outcome)
        say(f"shrunk to {len(found.hits)} faults: {found.violations[0][:300]}\n    {small.reproduced_by()}")
    say(f"{len(outcome.hits)} faults, {outcome.virtual_s:.0f} virtual seconds, state {outcome.digest}")
    return report(total, empty=[], caught={})


def _hit(text: str) -> tuple[str, int]:
    knob, _, count = text.partition("@")
    return knob, int(count)


def _cells(text: str) -> tuple[Cell, ...]:
    knobs, _, phase = text.partition(",")
    return tuple((knob, phase) for knob in knobs.split("+"))


# --- everything


def everything(first: int, seeds: int, *, learns: bool) -> int:
    total, known = Total(), Known.read()
    for run, outcome in chain(sweep.singles(), in_parallel(work, sweep.pairs(PAIRS))):
        total.add(run, judged(outcome, sweep.ending(run.story)), "sweep_runs", covers=False)
    total.told("sweep")
    endings: dict[int, Ending] = {}
    for run, outcome in in_parallel(work, [Run(seed) for seed in range(first, first + seeds)]):
        total.add(run, outcome, "seeds")
        endings[run.seed] = outcome.ending
    total.told("seeds")
    plain = [Run(seed, script=frozenset()) for seed in range(first, first + min(PLAIN_SEEDS, seeds))]
    for run, outcome in in_parallel(work, plain):
        total.add(run, judged(outcome, endings[run.seed]), "plain_seeds", covers=False)
    total.told("plain")
    for run, outcome in in_parallel(work, over_http.runs_of(first, min(HTTP_SEEDS, seeds)), chunk=4):
        total.add(run, outcome, "http_seeds")
    total.told("http")
    known.reached |= direct(total, known)
    total.told("directed")
    caught = catching.all_mutants(known, say)
    for run, outcome in in_parallel(work, catching.sound(caught, range(first, first + seeds))):
        total.add(run, outcome, "sound_runs", covers=False)
    known.caught |= {name: seed for name, seed in caught.items() if seed}
    if learns:
        known.write()
    total.told("mutants")
    for line in total.coverage.matrix():
        say(line)
    return report(total, empty=total.coverage.empty(), caught=caught)


def judged(outcome: Outcome, other: Ending) -> Outcome:
    """I14: with faults and without them an instance ends in the same phase, on as many machines."""
    differs = [name for name in outcome.ending.keys() & other.keys() if outcome.ending[name] != other[name]]
    if differs and not outcome.violations:
        name = differs[0]
        outcome.violations.append(f"I14 {name} ended in {outcome.ending[name]}, and in {other[name]} otherwise")
    return outcome


def work(run: Run) -> tuple[Run, Outcome]:
    with disk():
        return run, do(run)


def direct(total: Total, known: Known) -> dict[str, int]:
    """Runs of their own for the cells that few seeds reached; returns with which seed each was."""
    reached: dict[str, int] = {}
    groups = [(group, known.seeds_of(group.cells)) for group in directed(total.coverage.wanting())]
    for tried in in_parallel(reach, groups, chunk=1):
        for run, outcome in tried:
            total.add(run, outcome, "directed_runs", covers=False)
            hit = [cell for cell in run.directed if outcome.cells.get(cell)]
            total.coverage.directed.update(hit)
            reached |= {",".join(cell): run.seed for cell in hit}
    return reached


def reach(group_and_known: tuple[Directed, set[int]]) -> list[tuple[Run, Outcome]]:
    """Seed after seed, aimed at what is left."""
    group, known = group_and_known
    tried, left = [], set(group.cells)
    for seed in known_first(known, range(1, DIRECTED_SEEDS + 1)):
        tried.append(work(group.run(seed, left)))
        left -= tried[-1][1].cells.keys()
        if not left:
            break
    return tried


def soak(first: int, minutes: float, *, at_least: int) -> int:
    """Batches of seeds until the time is over and so many have run; every second one is hunted."""
    total, seed = Total(), first
    while total.watch.seconds() < minutes * 60 or seed - first < at_least:
        runs = [hunted(s) if s % 2 else Run(s) for s in range(seed, seed + SOAK_BATCH)]
        for run, outcome in in_parallel(work, runs, chunk=1):
            total.add(run, outcome, "seeds")
        seed += SOAK_BATCH
        say(f"{seed - first} seeds, {len(total.red)} red, {total.watch}")
    return report(total, empty=[], caught={})


def hunted(seed: int) -> Run:
    """A few faults together, each at its highest rate: what a seed's own mix meets once in thousands of seeds."""
    chance = random.Random(f"hunted {seed}")
    names = [knob.name for knob in KNOBS]
    return Run(seed, stirred=frozenset(chance.sample(names, chance.randint(2, 6))))


# --- the end


def report(total: Total, *, empty: list[tuple[str, str]], caught: dict[str, int | None]) -> int:
    for run, outcome in total.red[:RED_SHOWN_MAX] if total.counts["seeds"] > 1 else []:
        small, found = shrink(run, outcome)
        say(f"{found.violations[0][:300]}\n    {small.reproduced_by()}")
    for cell in empty:
        say(f"EMPTY cell {cell}")
    escaped = [name for name, seed in caught.items() if seed is None]
    for name in escaped:
        say(f"NOT CAUGHT: {name}")
    facts: dict[str, Any] = {
        "seeds": total.counts["seeds"],
        "events": total.counts["events"],
        "kills": total.counts["kills"],
        "violations": len(total.red),
        "fault_kinds": len(KNOBS),
        "cells": len(cells()),
        "empty_cells": len(empty),
        "excluded_cells": len(RARE),
        "mutants": len(MUTANTS) if caught else 0,
        "mutants_caught": len(caught) - len(escaped),
        "sweep_runs": total.counts["sweep_runs"],
        "directed_runs": total.counts["directed_runs"],
        "sound_runs": total.counts["sound_runs"],
        "plain_seeds": total.counts["plain_seeds"],
        "http_seeds": total.counts["http_seeds"],
        "seconds": total.watch.seconds(),
        "seconds_of": total.seconds_of,
        "cpu_seconds": total.watch.cpu_seconds(),
    }
    print(json.dumps(facts))
    return 1 if total.red or empty or escaped else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # the same seed is the same story in every process: no set's order may differ
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    sys.exit(main(sys.argv[1:]))
