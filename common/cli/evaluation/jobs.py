"""What a 48 h job costs that follows what is available, against the same job in the best single place of its folder.

The best single place is known only afterwards; the job over several places knows, at each tick, only the past. The
bound is held at the tightest deadline: with more slack one place that is nearly always up costs no more than the bare
spot price, and nothing can cost less than that (`floor_ratio` says how far down the ratio could go).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from common.cli.evaluation.readers import Recorded
from common.cli.evaluation.report import Bound, Evaluation, Measured, measured
from common.cli.evaluation.survival import described
from common.domain import job
from common.domain.job import Job, Run
from common.domain.scores import Draw
from common.domain.survival import Place

DEADLINES_H = (52, 60, 72)
BOUND_DEADLINE_H = 52
START_EVERY_H = 5.0
"""Distance of the jobs that are tried; not a divisor of a day, so that all hours of the day are."""
MAX_STARTS = 60
MIN_STARTS = 5
MIN_PLACES = 2
RATIO_AT_MOST = 0.75
Trial = tuple[Run, Sequence[Run]]
"""One start: the job over all places, and in each of them alone."""
HARDWARE = re.compile(r"[a-z]_(\w+)$")
"""us-west-2a_v100_1: what stands behind the zone."""


def evaluate(recorded: Recorded, draw: Draw) -> Evaluation:
    """Per folder and deadline: cost of all places together, of the best single one, deadlines missed."""
    found = Evaluation("jobs")
    for folder, places in recorded.places.items():
        found.data.append(described(folder, places, recorded))
        if len(places) < MIN_PLACES:
            continue
        for deadline_h in DEADLINES_H:
            _report(found, folder, "all places", places, Job(deadline_h=deadline_h), draw)
        for hardware, same in _by_hardware(places).items():
            _report(found, folder, hardware, same, Job(deadline_h=BOUND_DEADLINE_H), draw)
    return found


def _report(found: Evaluation, folder: str, group: str, places: Sequence[Place], wanted: Job, draw: Draw) -> None:
    starts = _starts(places, wanted)
    ranks = job.ranks(places)
    trials = [trial for start in starts if (trial := _trial(wanted, places, start, ranks)) is not None]
    if len(trials) < MIN_STARTS:
        return
    blocks = _blocks(trials, starts, wanted, places[0].step_s)
    ratio = measured(blocks, lambda some: _ratio([trial for block in some for trial in block]), draw, len(trials))
    missed = sum(not run.met_deadline for run, _ in trials)
    if group == "all places" and wanted.deadline_h == BOUND_DEADLINE_H:
        title = f"{folder}: 48 h job, deadline {wanted.deadline_h:g} h, {len(places)} places"
        found.bounds.append(Bound(f"{title}: cost / best single place", "at most", RATIO_AT_MOST, ratio))
        found.bounds.append(Bound(f"{title}: deadlines missed", "at most", 0.0, Measured(missed, None, len(trials))))
    found.results.append(_shown(folder, group, places, wanted, trials, ratio))


def _trial(wanted: Job, places: Sequence[Place], start: int, ranks: job.Ranks) -> Trial | None:
    together = job.run(wanted, places, start, ranks=ranks)
    alone = [run for place in places if (run := job.run(wanted, [place], start)) is not None]
    return (together, alone) if together is not None and len(alone) == len(places) else None


def _shown(
    folder: str, group: str, places: Sequence[Place], wanted: Job, trials: Sequence[Trial], ratio: Measured
) -> dict[str, Any]:  # fmt: skip
    costs = [_mean([alone[n] for _, alone in trials]) for n in range(len(places))]
    best = min(range(len(places)), key=costs.__getitem__)
    together = [run for run, _ in trials]
    return {
        "folder": folder,
        "places": group,
        "count": len(places),
        "deadline_h": wanted.deadline_h,
        "n": len(trials),
        "span_days": round(max(len(place.up) for place in places) * places[0].step_s / 86_400, 2),
        "cost_of_on_demand": round(_mean(together) / wanted.work_h, 4),
        "best_single_place": places[best].name,
        "best_single_cost_of_on_demand": round(costs[best] / wanted.work_h, 4),
        "ratio": ratio.shown(),
        "floor_ratio": round(wanted.work_h * job.SPOT_PRICE / costs[best], 4),
        "moves": round(sum(run.moves for run in together) / len(together), 2),
        "elapsed_h": round(sum(run.elapsed_h for run in together) / len(together), 2),
        "missed": sum(not run.met_deadline for run in together),
        "missed_single": sum(not run.met_deadline for _, alone in trials for run in alone),
    }


def _blocks(trials: Sequence[Trial], starts: Sequence[int], wanted: Job, step_s: float) -> list[Sequence[Trial]]:
    """Jobs that overlap live through the same days: those begun within one deadline are drawn together."""
    apart_s = (starts[1] - starts[0]) * step_s
    size = max(1, round(wanted.deadline_h * 3600 / apart_s))
    return [trials[at : at + size] for at in range(0, len(trials), size)]


def _ratio(trials: Sequence[Trial]) -> float | None:
    """Mean cost over that of the place whose own mean is the lowest."""
    places = range(len(trials[0][1]))
    return _mean([run for run, _ in trials]) / min(_mean([alone[n] for _, alone in trials]) for n in places)


def _mean(runs: Sequence[Run]) -> float:
    return sum(run.cost for run in runs) / len(runs)


def _starts(places: Sequence[Place], wanted: Job) -> list[int]:
    first = max(place.first for place in places)
    last = min(place.first + len(place.up) for place in places) - int(wanted.deadline_h * 3600 / places[0].step_s)
    every = max(1, round(START_EVERY_H * 3600 / places[0].step_s), (last - first) // MAX_STARTS)
    return list(range(first, last + 1, every))


def _by_hardware(places: Sequence[Place]) -> dict[str, list[Place]]:
    """Places that offer the same hardware, where their names say so and there are at least two, but not all."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        named = HARDWARE.search(place.name)
        groups[named[1] if named else ""].append(place)
    return {name: same for name, same in groups.items() if name and MIN_PLACES <= len(same) < len(places)}
