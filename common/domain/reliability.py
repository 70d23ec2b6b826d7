"""What a machine did with the rentals it had, whose fault each end was, and when it is no longer rented. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from common.domain.model import Model
from common.domain.rental import Loss

HALF_LIFE = timedelta(days=14)
"""An outcome counts half after so long: hosts are repaired, and change hands."""
BLOCKED_BELOW = 0.30
"""A machine is blocked while the upper bound of its success rate is below this."""
Z = 1.2816
"""Of the one-sided 90 % Wilson bound: four failures of four block, three of three do not."""

FORGOTTEN = 1e-6
"""Outcomes that weigh less than this together are as if they had never been."""


OF_THE_HOST = frozenset({"disk_full", "os_error", "engine_died", "object_store"})
"""Errors of a restore that another machine may not have: its disk, its memory, its network."""


class Fault(StrEnum):
    """Whose fault an outcome is."""

    NOBODY = "nobody"
    """It did what it promised."""
    HOST = "host"
    MARKET = "market"
    OURS = "ours"
    """The user's or our own doing."""


class Outcome(StrEnum):
    """How one rental ended; each rental has exactly one."""

    SERVED = "served"
    """Let go after it served, or after it stood ready in the pool."""
    BOOT_FAILED = "boot_failed"
    BOOT_TIMEOUT = "boot_timeout"
    CONTAINER_DIED = "container_died"
    INTERRUPTED = "interrupted"
    """Stopped by the market or its host while rented on demand."""
    LOST = "lost"
    SILENT = "silent"
    LIED = "lied"
    """What it has is not what its offer said."""
    RESTORE_FAILED = "restore_failed"
    """For a reason of its own: the disk, the network."""
    OFFER_GONE = "offer_gone"
    REFUSED = "refused"
    OVERPRICED = "overpriced"
    """Dearer than it was offered."""
    OUTBID = "outbid"
    LOST_RACE = "lost_race"
    CANCELLED = "cancelled"
    NO_CREDIT = "no_credit"
    IMAGE_REFUSED = "image_refused"


FAULT: Mapping[Outcome, Fault] = {
    Outcome.SERVED: Fault.NOBODY,
    Outcome.BOOT_FAILED: Fault.HOST,
    Outcome.BOOT_TIMEOUT: Fault.HOST,
    Outcome.CONTAINER_DIED: Fault.HOST,
    Outcome.INTERRUPTED: Fault.HOST,
    Outcome.LOST: Fault.HOST,
    Outcome.SILENT: Fault.HOST,
    Outcome.LIED: Fault.HOST,
    Outcome.RESTORE_FAILED: Fault.HOST,
    Outcome.OFFER_GONE: Fault.MARKET,
    Outcome.REFUSED: Fault.MARKET,
    Outcome.OVERPRICED: Fault.MARKET,
    Outcome.OUTBID: Fault.MARKET,
    Outcome.LOST_RACE: Fault.OURS,
    Outcome.CANCELLED: Fault.OURS,
    Outcome.NO_CREDIT: Fault.OURS,
    Outcome.IMAGE_REFUSED: Fault.OURS,
}
FROM_LOSS: Mapping[Loss, Outcome] = {
    "interrupted": Outcome.INTERRUPTED,
    "gone": Outcome.LOST,
    "offline": Outcome.LOST,
    "boot_failed": Outcome.BOOT_FAILED,
}


def says_something(outcome: Outcome) -> bool:
    """Does it count for or against the machine?"""
    return FAULT[outcome] in (Fault.NOBODY, Fault.HOST)


class MachineRecord(Model):
    """The document `machines/<provider>.<machine_id>`; `good` and `bad` are as of `at` and decay from there."""

    schema_version: int = 1
    provider: str
    machine_id: str
    gpu: str = ""
    good: float = 0.0
    bad: float = 0.0
    at: datetime
    outcomes: dict[str, int] = {}
    """How often each outcome was counted, undecayed: the story, not the judgement."""
    last_outcome: Outcome | None = None
    blocked_until: datetime | None = None
    """Indexed; from then on its failures are old enough to try it again."""

    def noting(self, outcome: Outcome, *, gpu: str, at: datetime) -> Self:
        """One more rental ended; one that says nothing about the machine changes nothing."""
        if not says_something(outcome):
            return self
        good, bad = self.weights(at)
        good += FAULT[outcome] is Fault.NOBODY
        bad += FAULT[outcome] is Fault.HOST
        return self.model_copy(
            update={
                "gpu": gpu,
                "good": good,
                "bad": bad,
                "at": max(at, self.at),
                "outcomes": self.outcomes | {outcome.value: self.outcomes.get(outcome.value, 0) + 1},
                "last_outcome": outcome,
                "blocked_until": blocked_until(good, bad, at),
            }
        )

    def weights(self, now: datetime) -> tuple[float, float]:
        """(good, bad) outcomes, each counted by its age."""
        left = 0.5 ** (max(timedelta(0), now - self.at) / HALF_LIFE)
        return self.good * left, self.bad * left

    def is_blocked(self, now: datetime) -> bool:
        return self.blocked_until is not None and now < self.blocked_until


def success_bound(good: float, bad: float) -> float:
    """The Wilson score interval's upper end for the success rate; 1 when nothing (or nothing any more) is known."""
    tries = good + bad
    if tries < FORGOTTEN:
        return 1.0
    rate, z2 = good / tries, Z * Z
    spread = Z * math.sqrt(rate * (1 - rate) / tries + z2 / (4 * tries * tries))
    return min(1.0, (rate + z2 / (2 * tries) + spread) / (1 + z2 / tries))


def blocked_until(good: float, bad: float, at: datetime) -> datetime | None:
    """When the outcomes have decayed so far that the bound reaches BLOCKED_BELOW; None = it is not below it now.

    With the rate p and the bound u, Wilson's equation gives the tries at which they meet: z^2 u (1 - u) / (u - p)^2.
    """
    if success_bound(good, bad) >= BLOCKED_BELOW:
        return None
    tries = good + bad
    rate = good / tries
    enough = Z * Z * BLOCKED_BELOW * (1 - BLOCKED_BELOW) / (BLOCKED_BELOW - rate) ** 2
    return at + HALF_LIFE * math.log2(tries / enough)
