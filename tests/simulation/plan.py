"""What a world is made of, besides its faults: drawn by its seed, or scripted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from common.config import Timing
from common.domain.strategy import Strategy
from tests.simulation.users import Owned

STORY_AT_MOST_S = 40_000.0
PRUNE_GRACE_S = 400.0
"""So short that packs go within a story; a snapshot that takes half of it is given up."""
MARKETS = (*[("vast",)] * 5, *[("vast", "tensordock")] * 2, ("tensordock",))
IN_SLACK, DEPLOYS_IN_SLACK = 0.08, 0.5
"""Of the worlds; of those, the ones whose first instance is asked for there."""
SLACK_FOR_S = 3_000.0
"""At most: what is followed by the second costs as much as it adds."""
WITH_STANDBY = 0.25
"""Of the worlds: instances have standbys at Google. They cost more than the others."""
IDLE_FOR_S = (120.0, 600.0, 3_600.0)
STORIES = {"coldstart": Strategy.COLDSTART, "race": Strategy.RACE, "standby": Strategy.COLDSTART}
"""Scripted lives, and how their machine is chosen."""


@dataclass(frozen=True)
class Lives:
    """For how long things go wrong in a world: few worlds last much longer than `least_s`."""

    least_s: float
    most_s: float
    tail: int
    """The power of what is drawn evenly."""
    standby_s: tuple[float, float]
    """At least and at most, where there is a standby."""
    heartbeats_s: tuple[float, ...]
    """One of them is drawn. The default is 3 s; who hears late acts on older words, and a world of them costs less."""

    def faults_for_s(self, drawn: float) -> float:
        return self.least_s + (self.most_s - self.least_s) * drawn**self.tail


MANY = Lives(
    least_s=700.0,
    most_s=9_500.0,
    tail=12,
    standby_s=(1_200.0, 2_500.0),
    heartbeats_s=(3.0, *[10.0] * 4, *[30.0] * 5, *[60.0] * 2),
)
"""A second of a processor reaches as many cells of the matrix as in LONG, in twice as many worlds."""
LONG = Lives(
    least_s=1_500.0,
    most_s=9_500.0,
    tail=4,
    standby_s=(2_500.0, 4_500.0),
    heartbeats_s=(3.0, 10.0, 10.0, 30.0, 30.0, 30.0),
)
"""For runs that look for one thing: it needs its time."""


@dataclass(frozen=True)
class Plan:
    """What a world is made of, besides its faults."""

    owned: tuple[Owned, ...]
    faults_for_s: float
    timing: Timing = field(default_factory=Timing)
    pool_size: int = 0
    markets: tuple[str, ...] = ("vast",)
    in_slack: bool = False
    """The users are in Slack, too."""
    with_standby: bool = False
    """There is a Google, and every instance has a standby unless its user says otherwise."""
    story: str = ""
    """Of STORIES: the users follow a script (module `story`) instead of their whims."""

    @classmethod
    def of_story(cls, name: str) -> Plan:
        owned = Owned("acct0", STORIES[name])
        return cls((owned,), STORY_AT_MOST_S, story=name, with_standby=name == "standby")

    @classmethod
    def of(cls, seed: int, lives: Lives = MANY, *, in_slack: bool = False, with_standby: bool = False) -> Plan:
        plan = cls._with_slack(seed, lives, in_slack=in_slack)
        rng = random.Random(f"standby:{seed}")
        if not (rng.random() < WITH_STANDBY or with_standby):
            return plan
        owned = tuple(replace(each, idle_for_s=rng.choice(IDLE_FOR_S)) for each in plan.owned[: rng.choice((1, 1, 2))])
        least_s, most_s = lives.standby_s
        faults_for_s = max(least_s, min(plan.faults_for_s, most_s))
        return replace(plan, with_standby=True, owned=owned, faults_for_s=faults_for_s)

    @classmethod
    def _with_slack(cls, seed: int, lives: Lives, *, in_slack: bool) -> Plan:
        plan, rng = cls._of(seed, lives), random.Random(f"slack:{seed}")
        if not (rng.random() < IN_SLACK or in_slack):
            return plan
        first, *others = plan.owned
        deploys = replace(first, deploys_in_slack=rng.random() < DEPLOYS_IN_SLACK)
        faults_for_s = min(plan.faults_for_s, SLACK_FOR_S)
        return replace(plan, in_slack=True, owned=(deploys, *others), faults_for_s=faults_for_s)

    @classmethod
    def _of(cls, seed: int, lives: Lives) -> Plan:
        rng = random.Random(f"plan:{seed}")
        count = rng.choice((1, 1, 2, 3))
        strategies = (Strategy.COLDSTART, Strategy.RACE, Strategy.ROUNDROBIN, Strategy.SERVERLESS)
        owned = tuple(
            Owned(
                f"acct{n % 2}",
                rng.choice(strategies),
                snapshot_every_s=rng.choice((None, 60.0, 180.0)),
                idle_for_s=rng.choice((None, 60.0, 600.0)),
            )
            for n in range(count)
        )
        faults_for_s, pool_size = lives.faults_for_s(rng.random()), rng.choice((0, 0, 1))
        heartbeat_s = rng.choice(lives.heartbeats_s)
        timing = Timing(heartbeat_busy_s=heartbeat_s, prune_every_s=60, prune_grace_s=PRUNE_GRACE_S)
        return cls(owned, faults_for_s, timing, pool_size, rng.choice(MARKETS))
