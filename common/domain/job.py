"""A long job with a deadline on machines that may vanish: stay in one place, or follow what is available? Pure.

Work is done on a spot machine while there is one. Each time the job starts somewhere it loses an overhead. When what is
left of the deadline just suffices, it moves to an on-demand machine for good: so no deadline is ever missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.domain.survival import OWN_SURVIVAL, Place, rows

SPOT_PRICE = 0.317
"""Of the on-demand price: 0.9701 / 3.06 USD, p3.2xlarge, us-west-2."""
ON_DEMAND = -1
"""Stands for the on-demand machine where an index of a place is meant."""
DONE_H = 1e-9
"""Less work than this is rounding."""


@dataclass(frozen=True)
class Job:
    """All in hours."""

    work_h: float = 48.0
    deadline_h: float = 52.0
    overhead_h: float = 0.2
    """Provisioning and restoring, paid for, each time it starts on a machine."""


@dataclass(frozen=True)
class Run:
    """How one job went; `cost` in hours of the on-demand price."""

    cost: float
    met_deadline: bool
    moves: int
    """Starts on a machine after the first one."""
    on_demand_h: float
    elapsed_h: float


Ranks = Mapping[tuple[str, int], float]
"""(place, tick) -> how well the place has kept its machines so far."""


def ranks(places: Sequence[Place]) -> Ranks:
    """By the share of past hours that were survived, known at that tick; for every look that was up."""
    return {(row.place, row.tick): row.features[OWN_SURVIVAL] for row in rows(places, 1)}


def run(
    job: Job, places: Sequence[Place], start: int, *, ranks: Ranks | None = None, spot_price: float = SPOT_PRICE
) -> Run | None:
    """The job begun at tick `start`, in whichever of `places` is available; None if they are not all recorded so long.

    One place = the policy of staying. Of several, the best ranked that is available now is taken, without `ranks` the
    first; it is left only when it is lost.
    """
    tick_h = places[0].step_s / 3600
    ticks = int(job.deadline_h / tick_h + 1e-9)
    if any(start < p.first or start + ticks > p.first + len(p.up) for p in places):
        return None
    where: int | None = None
    left_h, starting_h, on_demand_h, spot_h = job.work_h, 0.0, 0.0, 0.0
    starts = passed = 0
    while left_h > DONE_H and passed < ticks:
        here = [n for n, p in enumerate(places) if p.up[start + passed - p.first]]
        slack_h = (ticks - passed - 1) * tick_h - left_h - job.overhead_h
        chosen = _choose(where, here, places, start + passed, ranks or {}, hurry=slack_h < 0)
        if chosen is not None and chosen != where:
            starting_h, starts = job.overhead_h, starts + 1
        where = chosen
        used_h = min(tick_h, starting_h + left_h) if where is not None else 0.0
        on_demand_h += used_h if where == ON_DEMAND else 0.0
        spot_h += used_h if where != ON_DEMAND else 0.0
        left_h -= max(0.0, used_h - starting_h)
        starting_h = max(0.0, starting_h - used_h)
        passed += 1
    cost = on_demand_h + spot_h * spot_price
    return Run(cost, left_h <= DONE_H, max(0, starts - 1), on_demand_h, passed * tick_h)


def _choose(
    where: int | None, here: Sequence[int], places: Sequence[Place], tick: int, ranks: Ranks, *, hurry: bool
) -> int | None:
    """Stay while it is there; else the best ranked; None = wait. On demand is for good."""
    if where == ON_DEMAND or hurry:
        return ON_DEMAND
    if where in here:
        return where
    return max(here, key=lambda n: ranks.get((places[n].name, tick), 0.0), default=None)
