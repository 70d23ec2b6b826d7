"""Which offers to rent, in which order: the strategies as pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from common.domain.ranking import Ranked

RACERS = 5
"""Rentals in one race."""


class Strategy(StrEnum):
    COLDSTART = "coldstart"
    """One machine: the best ranked that fits. A slow one is hedged."""
    RACE = "race"
    """Five machines; the first that is ready wins, the others are released."""
    ROUNDROBIN = "roundrobin"
    """One machine, and each next one from another market or country: what failed together is not tried together."""
    SERVERLESS = "serverless"
    """A machine of the warm pool at once; when none fits, as coldstart. Hibernates when idle, wakes on demand."""


RENTALS_PER_ROUND = {
    Strategy.COLDSTART: 1,
    Strategy.RACE: RACERS,
    Strategy.ROUNDROBIN: 1,
    Strategy.SERVERLESS: 1,
}
HEDGED = frozenset({Strategy.COLDSTART, Strategy.ROUNDROBIN, Strategy.SERVERLESS})
"""Strategies that rent a second machine when the first one is slow; a race has its own."""


def choose(
    offers: Sequence[Ranked], strategy: Strategy, *, tried: Collection[str] = (), turn: int = 0
) -> list[Ranked]:  # fmt: skip
    """The offers of one round: best ranked first, one per machine, never a blocked one, untried machines only.

    When every machine was tried already, they are all candidates again: an offer that was gone may be back.
    `turn` = attempts made so far: a round robin goes on from there.
    """
    best = one_per_machine(offers)
    candidates = [ranked for ranked in best if ranked.offer.machine_id not in tried] or best
    if strategy is Strategy.ROUNDROBIN:
        candidates = _in_turn(candidates, turn)
    return candidates[: RENTALS_PER_ROUND[strategy]]


def choose_hedge(offers: Sequence[Ranked], *, tried: Collection[str]) -> Ranked | None:
    """The best machine not tried yet: renting the slow one twice would help nobody."""
    fresh = [ranked for ranked in one_per_machine(offers) if ranked.offer.machine_id not in tried]
    return fresh[0] if fresh else None


def one_per_machine(offers: Sequence[Ranked]) -> list[Ranked]:
    """The first offer of each machine that is not blocked, in the given order."""
    chosen: dict[str, Ranked] = {}
    for ranked in offers:
        if ranked.blocked_until is None:
            chosen.setdefault(ranked.offer.machine_key, ranked)
    return list(chosen.values())


def _in_turn(offers: Sequence[Ranked], turn: int) -> list[Ranked]:
    """The best of each (market, country) by turns, beginning with the turn's own."""
    groups: dict[tuple[str, str | None], list[Ranked]] = {}
    for ranked in sorted(offers, key=lambda r: (r.offer.provider, r.offer.country or "")):
        groups.setdefault((ranked.offer.provider, ranked.offer.country), []).append(ranked)
    first = turn % len(groups) if groups else 0
    order = [*groups.values()][first:] + [*groups.values()][:first]
    longest = max(map(len, order), default=0)
    return [group[place] for place in range(longest) for group in order if place < len(group)]
