"""When is a GPU idle? Pure: the agent runs it over its own samples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

IDLE_GPU_PERCENT = 5.0
SAMPLE_EVERY_S = 5.0
MISSED_SAMPLES = 2.5
"""A gap longer than this many sampling periods is missing telemetry."""


class Sample(BaseModel):
    """One look at the host; None = the signal could not be read, which is never idle."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    gpu_percent: float | None


def idle_since(
    samples: Sequence[Sample], *, now: datetime, sample_every_s: float = SAMPLE_EVERY_S
) -> datetime | None:  # fmt: skip
    """Since when every sample until now has been present and quiet; None = busy, or not known.

    `samples` are in the order in which they were taken. A gap in them (before the newest one or after it), a clock
    that went back, a missing signal or one busy sample restarts the time.
    """
    since: datetime | None = None
    later = now
    longest_gap = timedelta(seconds=sample_every_s * MISSED_SAMPLES)
    for sample in reversed(samples):
        quiet = sample.gpu_percent is not None and 0 <= sample.gpu_percent < IDLE_GPU_PERCENT
        if not quiet or not timedelta(0) <= later - sample.at <= longest_gap:
            break
        since = later = sample.at
    return since


def is_idle(idle_from: datetime | None, *, idle_for_s: float, now: datetime) -> bool:
    """Quiet for the whole window."""
    return idle_from is not None and now - idle_from >= timedelta(seconds=idle_for_s)
