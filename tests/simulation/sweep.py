"""Exhaustive: each effect of one scripted life x each of the seven ways in which a call goes wrong; then pairs.

The same life as a race is killed after each of its effects, but for the turns that it takes at a market: who is killed
with a turn is who was killed before it took one. The life of a pair (mirrored, taken over, handed back,
parted) goes wrong in all seven ways where only Google's market is called, and is killed after a sample of its others.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from tests.simulation import branches
from tests.simulation.faults import Hit
from tests.simulation.plan import STORIES
from tests.simulation.runs import Run, disk, do
from tests.simulation.world import Outcome, World

STORY_SEED = 7
OF_PAIRS_STANDBYS = 0.25
"""Of the sampled pairs of faults: in the life that has a standby, which costs twice as much."""
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
CHANGES |= {"start", "detach", "reserve", "release"}
OF_STANDBYS = {"start", "detach", "operation", "operations", "reserve", "release", "addresses"}
"""Calls of a market that only Google's gets."""
TURNS = "pacing/"
STANDBY_KILLS = 120
"""Of the pair's effects, evenly over its life."""
ONLY_OF_CHANGES = {"late apply", "duplicate"}


class Effect(NamedTuple):
    number: int
    port: str
    verb: str
    about: str

    @classmethod
    def of(cls, line: str) -> Self:
        """Of a gate's trace."""
        number, call, about = line.split(" ", 2)
        port, verb = call.split(".")
        return cls(int(number), port, verb, about)


@functools.cache
def ending(story: str) -> dict[str, tuple[str, int]]:
    """Of the scripted life without a fault: what every single fault must end in, too (I14)."""
    with disk():
        return do(_life(story)).ending


def _life(story: str) -> Run:
    return Run(STORY_SEED, script=frozenset(), story=story)


@functools.cache
def effects(story: str) -> list[Effect]:
    """The calls that have an effect or leave the product, while the faults last."""
    run = _life(story)
    with disk() as folder:
        world = World(STORY_SEED, run.faults(), run.plan(), folder, trace=True)
        outcome = world.run()
        assert not outcome.violations, outcome.violations
        assert world.gate.trace is not None
        calls = [Effect.of(line) for line in world.gate.trace[: world.calls_with_faults]]
    return [call for call in calls if call.port != "store" or call.verb in CHANGES]


def singles() -> Iterator[tuple[Run, Outcome]]:
    """Every effect of the lives with each fault that it can have."""
    for story in STORIES:
        yield from branches.of(_life(story), hits(story))


def hits(story: str) -> dict[int, list[Hit]]:
    """The number of a call -> the faults that it can have; the race is only killed after its changes."""
    calls = effects(story)
    if story == "coldstart":
        return _of_each(calls)
    changes = [call.number for call in calls if call.verb in CHANGES]
    if story == "race":
        turns = {call.number for call in calls if call.about.startswith(TURNS)}
        return {number: [("vanish_after", number)] for number in changes if number not in turns}
    step = max(1, len(changes) // STANDBY_KILLS)
    killed: dict[int, list[Hit]] = {number: [("vanish_after", number)] for number in changes[::step]}
    return killed | _of_each([call for call in calls if call.verb in OF_STANDBYS])


def _of_each(calls: Sequence[Effect]) -> dict[int, list[Hit]]:
    return {call.number: [hit for fault in GENERIC if (hit := _hit(fault, call))] for call in calls}


def runs() -> list[Run]:
    """The same, each as a run of its own from its beginning."""
    return [
        Run(STORY_SEED, script=frozenset({hit}), story=story)
        for story in STORIES
        for found in hits(story).values()
        for hit in found
    ]


def pairs(count: int) -> Iterator[Run]:
    """Sampled: a second fault, more often than not while the first one is being handled."""
    rng = random.Random(STORY_SEED)
    while count > 0:
        story = "standby" if rng.random() < OF_PAIRS_STANDBYS else "coldstart"
        calls = effects(story)
        at = rng.randrange(len(calls))
        other = min(len(calls) - 1, at + int(rng.expovariate(0.2))) if rng.random() < 0.7 else rng.randrange(len(calls))
        hits = [_hit(rng.choice(list(GENERIC)), calls[index]) for index in (at, other)]
        found = frozenset(hit for hit in hits if hit)
        if len(found) == 2:
            count -= 1
            yield Run(STORY_SEED, script=found, story=story)


def _hit(fault: str, call: Effect) -> Hit | None:
    """None where a fault makes no sense: what changes nothing cannot be applied late or twice."""
    number, port, verb, _ = call
    if (fault in ONLY_OF_CHANGES and verb not in CHANGES) or port not in GENERIC[fault]:
        return None
    if port == "store" and fault == "lost reply" and verb not in CHANGES:
        return None
    return GENERIC[fault][port], number
