"""When is a machine idle? Its GPU is quiet, and nothing else says that somebody uses it. Pure: run by the agent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from common.domain.model import Model

IDLE_GPU_PERCENT = 5.0
SAMPLE_EVERY_S = 5.0
GPU = "gpu"
"""The veto of a GPU that works, or whose work is not known."""
MISSED_SAMPLES = 2.5
"""A gap longer than this many sampling periods is missing telemetry."""
WARN_BEFORE_S = 60.0
WARN_SHARE = 1 / 3
"""The user is warned so long before the window ends, or this share of it where that is shorter."""
NOTICE_SHARE = 1 / 6
NOTICE_MAX_S = 30.0
"""A warning stands for at least this share of the window before anything happens, whatever came late."""


class Sample(Model):
    """One look at the host; None = the signal could not be read, which is never idle."""

    at: datetime
    gpu_percent: float | None
    signs: tuple[str, ...] = ()
    """Of life besides the GPU: words of `common.domain.life`."""

    @property
    def is_gpu_quiet(self) -> bool:
        return self.gpu_percent is not None and 0 <= self.gpu_percent < IDLE_GPU_PERCENT


def idle_since(
    samples: Sequence[Sample], *, now: datetime, sample_every_s: float = SAMPLE_EVERY_S
) -> datetime | None:  # fmt: skip
    """Since when every sample until now has been present and quiet; None = busy, or not known.

    `samples` are in the order in which they were taken. A gap in them (before the newest one or after it), a clock
    that went back, a missing signal, one busy sample or one other sign of life restarts the time.
    """
    since: datetime | None = None
    later = now
    longest_gap = timedelta(seconds=sample_every_s * MISSED_SAMPLES)
    for sample in reversed(samples):
        if not sample.is_gpu_quiet or sample.signs or not timedelta(0) <= later - sample.at <= longest_gap:
            break
        since = later = sample.at
    return since


def vetoes(samples: Sequence[Sample], *, idle_for_s: float, now: datetime) -> tuple[str, ...]:
    """What kept the machine busy within the last window; GPU = the GPU itself, or that nobody knows."""
    recent = [sample for sample in samples if now - sample.at <= timedelta(seconds=idle_for_s)]
    signs = {sign for sample in recent for sign in sample.signs}
    if not recent or not all(sample.is_gpu_quiet for sample in recent):
        signs.add(GPU)
    return tuple(sorted(signs))


def is_idle(idle_from: datetime | None, *, idle_for_s: float, now: datetime) -> bool:
    """Quiet for the whole window."""
    return idle_from is not None and now - idle_from >= timedelta(seconds=idle_for_s)


def warn_at(idle_from: datetime, *, idle_for_s: float, awake_until: datetime | None) -> datetime:
    """When who may still want it is told: before the window ends, or before the lease that holds it open does."""
    return ends_at(idle_from, idle_for_s=idle_for_s, awake_until=awake_until) - timedelta(seconds=_lead_s(idle_for_s))


def ends_at(idle_from: datetime, *, idle_for_s: float, awake_until: datetime | None) -> datetime:
    window_ends = idle_from + timedelta(seconds=idle_for_s)
    return max(window_ends, awake_until) if awake_until else window_ends


def is_warned(
    warned_at: datetime | None, idle_from: datetime, *, idle_for_s: float, awake_until: datetime | None
) -> bool:
    """Was the warning given for this spell of idleness, and for this lease? An older one counts for nothing."""
    if warned_at is None or warned_at < idle_from:
        return False
    return awake_until is None or warned_at >= awake_until - timedelta(seconds=_lead_s(idle_for_s))


def notice_s(idle_for_s: float) -> float:
    """The least time between the warning and what it warns of."""
    return min(NOTICE_MAX_S, idle_for_s * NOTICE_SHARE)


def _lead_s(idle_for_s: float) -> float:
    return min(WARN_BEFORE_S, idle_for_s * WARN_SHARE)
