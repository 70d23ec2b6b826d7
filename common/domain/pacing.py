"""When may the next call to a marketplace be made? One token bucket per limit of the vendor, shared by everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Literal, Self

from common.domain.model import Model

Call = Literal["search", "create", "list", "get", "destroy", "credit", "charges"]
"""The calls of `ports.Market`."""

SLACK = 1.1
"""We count when we send, the vendor when it receives: every interval is kept a tenth longer."""
GRACE_S = 10.0
"""Who was refused a token is waited for, by those of lower priority, so much longer than it was told to wait."""
WAITERS_MAX = 200
"""Kept per bucket; more of them wait all the same, but unnamed."""


class Priority(IntEnum):
    """Who goes first: what should no longer bill, then people without their machine; looking comes last."""

    DESTROY = 0
    FAILOVER = 1
    WAKE = 2
    POLL = 3
    RECORD = 4
    """Who only writes down what there is: half of every burst stays for the others."""


@dataclass(frozen=True)
class Limit:
    """A vendor's limit: of `bucket` it lets through one token each `interval_s`, and `burst` at once.

    In any span of T seconds that is at most burst + T / interval_s. Calls may share a bucket; one call may be several
    requests (`cost` tokens).
    """

    bucket: str
    interval_s: float
    burst: int = 1
    cost: int = 1


Limits = Mapping[Call, Limit]


class Waiter(Model):
    priority: Priority
    since: datetime
    until: datetime

    @property
    def turn(self) -> tuple[Priority, datetime]:
        return self.priority, self.since


class Bucket(Model):
    """The document `pacing/<provider>.<bucket>`: tokens at a moment, and who was refused one."""

    tokens: float
    """Below zero after the vendor itself refused a call."""
    at: datetime
    waiting: dict[str, Waiter] = {}

    @classmethod
    def full(cls, limit: Limit, now: datetime) -> Self:
        return cls(tokens=limit.burst, at=now)

    def take(self, limit: Limit, *, who: str, priority: Priority, now: datetime) -> tuple[Self, float]:
        """The bucket afterwards and the seconds to wait: 0 = the call may be made now.

        A call is refused for want of tokens, or while somebody of higher priority waits for one. The seconds are a
        hint that spreads those who wait; nobody is promised a token.
        """
        filled, others = self._filled(limit, now), self._waiting(now)
        mine = others.pop(who, None)
        since = mine.since if mine else self._end_of_the_line(now)
        kept = limit.burst // 2 if priority is Priority.RECORD else 0
        if filled >= limit.cost + kept and not any(waiter.priority < priority for waiter in others.values()):
            return self.model_copy(
                update={"tokens": filled - limit.cost, "at": max(now, self.at), "waiting": others}
            ), 0.0
        ahead = sum(waiter.turn < (priority, since) for waiter in others.values())
        missing = max(limit.cost + kept - filled, 0.0) + ahead * limit.cost
        wait_s = max(missing, 0.1) * limit.interval_s * SLACK
        waiter = Waiter(priority=priority, since=since, until=now + timedelta(seconds=wait_s + GRACE_S))
        joined = {**others, who: waiter}
        return self.model_copy(update={"waiting": joined if len(joined) <= WAITERS_MAX else others}), wait_s

    def emptied(self, limit: Limit, retry_after_s: float, now: datetime) -> Self:
        """The vendor refused a call as too frequent: the next one is `retry_after_s` away."""
        tokens = limit.cost - retry_after_s / (limit.interval_s * SLACK)
        return self.model_copy(update={"tokens": min(tokens, self._filled(limit, now)), "at": max(now, self.at)})

    def _filled(self, limit: Limit, now: datetime) -> float:
        elapsed_s = max((now - self.at).total_seconds(), 0.0)
        return min(limit.burst, self.tokens + elapsed_s / (limit.interval_s * SLACK))

    def _end_of_the_line(self, now: datetime) -> datetime:
        """Behind everybody who is in it, also where several come in one moment."""
        return max([now, *(waiter.since + timedelta(microseconds=1) for waiter in self.waiting.values())])

    def _waiting(self, now: datetime) -> dict[str, Waiter]:
        return {who: waiter for who, waiter in self.waiting.items() if waiter.until > now}
