"""Exhaustive: each effect of one scripted life x each of the seven ways in which a call goes wrong; then pairs.

The same life as a race is killed after each of its effects.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

from tests.simulation import branches
from tests.simulation.faults import Hit
from tests.simulation.runs import Run, disk, do
from tests.simulation.world import Outcome, World

STORY_SEED = 7
PORTS = ("store", "market", "objects", "mail")
GENERIC: dict[str, dict[str, str]] = {
    "kill before": dict.fromkeys(PORTS, "kill_before"),
    "definite error": {"store": "store_aborts", "market": "market_throttled"},
    "unknown": {
        "store": "store_unreachable",
        "market": "market_unreachable",
        "objects": "objects_throttled",
        "mail": "mail_unreachable",
    },
    "lost reply": {
        "store": "store_commit_unknown",
        "market": "market_lost_reply",
        "objects": "objects_lost_reply",
        "mail": "mail_lost_reply",
    },
    "late apply": {port: f"{port}_late" for port in PORTS},
    "kill after": dict.fromkeys(PORTS, "vanish_after"),
    "duplicate": {
        "store": "store_retried",
        "market": "market_retried",
        "objects": "objects_twice",
        "mail": "mail_twice",
    },
}
CHANGES = {"create", "cas", "delete", "commit", "put", "increment", "append", "destroy", "put_file", "post"}
ONLY_OF_CHANGES = {"late apply", "duplicate"}


@functools.cache
def ending(*, is_race: bool = False) -> dict[str, tuple[str, int]]:
    """Of the scripted life without a fault: what every single fault must end in, too (I14)."""
    with disk():
        return do(Run(STORY_SEED, script=frozenset(), is_story=True, is_race=is_race)).ending


def effects(*, is_race: bool = False) -> list[tuple[int, str, str]]:
    """(number, port, verb) of the calls that have an effect or leave the product, while the faults last."""
    run = Run(STORY_SEED, script=frozenset(), is_story=True, is_race=is_race)
    with disk() as folder:
        world = World(STORY_SEED, run.faults(), run.plan(), folder, trace=True)
        outcome = world.run()
        assert not outcome.violations, outcome.violations
        assert world.gate.trace is not None
        calls = [(int(line.split()[0]), *line.split()[1].split(".")) for line in world.gate.trace]
        calls = calls[: world.calls_with_faults]
    return [(number, port, verb) for number, port, verb in calls if port != "store" or verb in CHANGES]


def singles() -> Iterator[tuple[Run, Outcome]]:
    """Every effect of both lives with each fault that it can have."""
    yield from branches.of(Run(STORY_SEED, script=frozenset(), is_story=True), hits())
    yield from branches.of(Run(STORY_SEED, script=frozenset(), is_story=True, is_race=True), hits(is_race=True))


def hits(*, is_race: bool = False) -> dict[int, list[Hit]]:
    """The number of a call -> the faults that it can have; the race is only killed after its changes."""
    if is_race:
        return {number: [("vanish_after", number)] for number, _, verb in effects(is_race=True) if verb in CHANGES}
    calls = effects()
    return {n: [hit for fault in GENERIC if (hit := _hit(fault, n, port, verb))] for n, port, verb in calls}


def runs() -> list[Run]:
    """The same, each as a run of its own from its beginning."""
    return [
        Run(STORY_SEED, script=frozenset({hit}), is_story=True, is_race=is_race)
        for is_race in (False, True)
        for found in hits(is_race=is_race).values()
        for hit in found
    ]


def pairs(count: int) -> Iterator[Run]:
    """Sampled: a second fault, more often than not while the first one is being handled."""
    rng, calls = random.Random(STORY_SEED), effects()
    while count > 0:
        at = rng.randrange(len(calls))
        other = min(len(calls) - 1, at + int(rng.expovariate(0.2))) if rng.random() < 0.7 else rng.randrange(len(calls))
        hits = [_hit(rng.choice(list(GENERIC)), *calls[index]) for index in (at, other)]
        found = frozenset(hit for hit in hits if hit)
        if len(found) == 2:
            count -= 1
            yield Run(STORY_SEED, script=found, is_story=True)


def _hit(fault: str, number: int, port: str, verb: str) -> Hit | None:
    """None where a fault makes no sense: what changes nothing cannot be applied late or twice."""
    if (fault in ONLY_OF_CHANGES and verb not in CHANGES) or port not in GENERIC[fault]:
        return None
    if port == "store" and fault == "lost reply" and verb not in CHANGES:
        return None
    return GENERIC[fault][port], number
