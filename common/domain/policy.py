"""After how long an idle GPU is hibernated, and what each such policy costs on a recorded day. Pure.

The customer's default (below 5 % for 3 minutes) is right when waking is free. When a wake costs B billed minutes, the
best fixed window is about B: it is the ski-rental problem, and nothing fancier was found to beat it. `adaptive` is
that rule with the wake cost that was measured; `shadow` only writes down what it would have done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from common.domain.idle import IDLE_GPU_PERCENT, MISSED_SAMPLES

DEFAULT_WINDOW_S = 180.0
"""The customer's default."""
RESUMED_SOON_S = 300.0
"""Work that is back so soon after a hibernation should not have been interrupted."""
DAY_S = 86_400.0


class IdlePolicy(StrEnum):
    """How long quiet has to last."""

    DEFAULT = "default"
    """As the instance's own setting says; 3 minutes unless it says otherwise."""
    ADAPTIVE = "adaptive"
    """As long as a wake costs: idle time and wakes then never cost more than twice the least possible."""
    SHADOW = "shadow"
    """As default, but nothing is hibernated: the decision is logged."""


def window_s(
    policy: IdlePolicy, *, fixed_s: float = DEFAULT_WINDOW_S, wake_cost_s: float | None = None, price_ratio: float = 1.0
) -> float:
    """The seconds of quiet after which the policy decides to hibernate.

    `wake_cost_s`: measured median of the billed seconds that a wake takes; None = not measured yet, then `fixed_s`.
    `price_ratio`: price per hour while waking over that of the idle machine.
    """
    if policy is not IdlePolicy.ADAPTIVE or wake_cost_s is None:
        return fixed_s
    return max(fixed_s, wake_cost_s * price_ratio)


@dataclass(frozen=True)
class Load:
    """One GPU's utilisation over time, in percent; in order of time, seconds."""

    name: str
    at: tuple[float, ...]
    percent: tuple[float, ...]


@dataclass(frozen=True)
class Account:
    """What one policy did on one or more GPUs, in seconds of GPU time; sums of Accounts are Accounts."""

    observed_s: float = 0.0
    idle_s: float = 0.0
    """Quiet time, hibernated or not."""
    paid_idle_s: float = 0.0
    """Quiet time that was paid for."""
    wakes: int = 0
    hibernations: int = 0
    resumed_soon: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(
            self.observed_s + other.observed_s,
            self.idle_s + other.idle_s,
            self.paid_idle_s + other.paid_idle_s,
            self.wakes + other.wakes,
            self.hibernations + other.hibernations,
            self.resumed_soon + other.resumed_soon,
        )

    def wasted_share(self, wake_cost_s: float) -> float | None:
        """Paid idle time and the billed time of wakes, as a share of the observed time; it may pass 1."""
        return (self.paid_idle_s + self.wakes * wake_cost_s) / self.observed_s if self.observed_s else None

    @property
    def hibernations_per_day(self) -> float | None:
        """Per observed GPU-day."""
        return self.hibernations * DAY_S / self.observed_s if self.observed_s else None

    @property
    def resumed_soon_share(self) -> float | None:
        return self.resumed_soon / self.hibernations if self.hibernations else None


def replay(load: Load, window_s: float | None) -> Account:
    """Hibernate after `window_s` of unbroken quiet, wake at the next busy sample; None = never hibernate.

    A sample stands for the time until the next one. Missing telemetry restarts the clock and is not counted: nobody
    knows what the GPU did. The hibernation happens at the first sample that completes the window, as the agent sees it.
    """
    longest_gap = sampling_s(load) * MISSED_SAMPLES
    account = Account()
    quiet_from: float | None = None
    slept_at: float | None = None
    ends = [*load.at[1:], load.at[-1] + longest_gap / MISSED_SAMPLES] if load.at else []
    for at, percent, end in zip(load.at, load.percent, ends, strict=True):
        seen = end - at
        if not 0 <= percent < IDLE_GPU_PERCENT:
            account += _woken(at, slept_at)
            quiet_from = slept_at = None
        else:
            quiet_from = at if quiet_from is None else quiet_from
            if slept_at is None and window_s is not None and at - quiet_from >= window_s:
                slept_at = at
                account += Account(hibernations=1)
        if seen > longest_gap:
            quiet_from = quiet_from if slept_at is not None else None
            continue
        is_idle = quiet_from is not None
        account += Account(seen, seen * is_idle, seen * (is_idle and slept_at is None))
    return account


def sampling_s(load: Load) -> float:
    """The usual distance of the samples; 60 with fewer than two."""
    distances = sorted(b - a for a, b in zip(load.at, load.at[1:], strict=False) if b > a)
    return distances[len(distances) // 2] if distances else 60.0


def _woken(at: float, slept_at: float | None) -> Account:
    if slept_at is None:
        return Account()
    return Account(wakes=1, resumed_soon=at - slept_at <= RESUMED_SOON_S)


def total(accounts: Sequence[Account]) -> Account:
    return sum(accounts, Account())
