"""What becomes of an instance that may be idle: one decision, which the job acts on and `why` explains. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from common.domain.host import HostRecord
from common.domain.idle import IDLE_GPU_PERCENT, ends_at, is_idle, is_warned, notice_s, warn_at
from common.domain.instance import Instance, Want
from common.domain.model import Model
from common.domain.policy import IdlePolicy

FRESH_PART = 0.5
"""Of `silent_after_s`: a report of idleness counts for no longer."""


class Act(StrEnum):
    NOTHING = "nothing"
    WARN = "warn"
    HIBERNATE = "hibernate"
    NOTE = "note"
    """The policy `shadow`: write down that it would be hibernated now."""


class Verdict(Model):
    """What is to be done now, and why; times are those that follow if nothing changes."""

    act: Act
    because: str
    policy: IdlePolicy
    window_s: float
    """Of quiet, after which the policy hibernates."""
    wake_cost_s: float | None
    """Median of the measured ones, which `adaptive` goes by."""
    idle_since: datetime | None = None
    vetoes: tuple[str, ...] = ()
    """Signs of life besides a quiet GPU."""
    awake_until: datetime | None = None
    warned_at: datetime | None = None
    """For this spell of idleness."""
    warns_at: datetime | None = None
    hibernates_at: datetime | None = None
    """Null also where nothing is ever hibernated (`shadow`)."""


def verdict(
    instance: Instance, host: HostRecord | None, *, default_idle_for_s: float, silent_after_s: float, now: datetime
) -> Verdict:  # fmt: skip
    """`host` = what the present writer's host last said. Missing telemetry is never idle."""
    window_s = instance.idle_window_s(default_idle_for_s)
    base = Verdict(
        act=Act.NOTHING,
        because=_not_idle(instance, host, silent_after_s, now) or "",
        policy=instance.spec.idle_policy,
        window_s=window_s,
        wake_cost_s=instance.wake_cost_s,
        idle_since=host.idle_since if host else None,
        vetoes=tuple(host.vetoes) if host else (),
        awake_until=instance.awake_until if instance.awake_until and instance.awake_until > now else None,
    )
    if base.because or host is None or host.idle_since is None:
        return base
    return _of_idle(instance, host, host.idle_since, base, now)


def _not_idle(instance: Instance, host: HostRecord | None, silent_after_s: float, now: datetime) -> str | None:
    """Why it is out of the question; None = it is quiet, as its host has just reported."""
    if not instance.is_running or instance.want is not Want.UP:
        return "it does not run, or is not meant to"
    if host is None or not instance.serves(host.label):
        return "its machine has not reported yet"
    silent_s = host.silent_for_s(now)
    if silent_s > silent_after_s * FRESH_PART:
        return f"its machine was last heard {silent_s:.0f} s ago: what it does is not known, and unknown is never idle"
    if host.vetoes:
        return f"its GPU is quiet, but there are other signs of life: {', '.join(host.vetoes)}"
    if host.idle_since is None:
        return _busy(host)
    if instance.snapshot_not_before is not None and now < instance.snapshot_not_before:
        return f"a snapshot failed, and the next try is at {instance.snapshot_not_before:%H:%M:%S} UTC"
    return None


def _busy(host: HostRecord) -> str:
    gpu = host.samples.get("gpu_percent")
    if gpu is None or gpu.max is None:
        return "the use of its GPU is not known, and unknown is never idle"
    if gpu.missing:
        return f"{gpu.missing} looks at its GPU failed, and unknown is never idle"
    if gpu.max >= IDLE_GPU_PERCENT:
        return f"its GPU is used: up to {gpu.max:.0f} % since the report before"
    return "its GPU has only just become quiet, or something else was going on until now"


def _of_idle(instance: Instance, host: HostRecord, idle_from: datetime, base: Verdict, now: datetime) -> Verdict:
    """The window ends with the report: of what happened since then nothing is known."""
    terms = {"idle_for_s": base.window_s, "awake_until": instance.awake_until}
    ends, warns = ends_at(idle_from, **terms), warn_at(idle_from, **terms)  # type: ignore[arg-type]
    is_over = is_idle(idle_from, idle_for_s=base.window_s, now=host.last_seen_at)
    is_held = instance.awake_until is not None and now < instance.awake_until
    if base.policy is IdlePolicy.SHADOW:
        return _in_shadow(instance, idle_from, base, is_due=is_over and not is_held)
    warned_at = instance.idle_warned_at
    if not is_warned(warned_at, idle_from, **terms):  # type: ignore[arg-type]
        due = now >= warns
        text = "idle for nearly its whole window: the user is warned" if due else "idle, and its window is not over"
        times = {"warns_at": None if due else warns, "hibernates_at": ends}
        return base.model_copy(update={"act": Act.WARN if due else Act.NOTHING, "because": text, **times})
    assert warned_at
    earliest = max(ends, warned_at + timedelta(seconds=notice_s(base.window_s)))
    may = is_over and not is_held and now >= earliest
    text = "idle for its whole window, and warned of in time" if may else "idle and warned of; its time is not over"
    update = {"act": Act.HIBERNATE if may else Act.NOTHING, "because": text, "warned_at": warned_at}
    return base.model_copy(update={**update, "hibernates_at": None if may else earliest})


def _in_shadow(instance: Instance, idle_from: datetime, base: Verdict, *, is_due: bool) -> Verdict:
    noted_at = instance.would_hibernate_at
    if noted_at and noted_at >= idle_from:
        return base.model_copy(update={"because": f"would have been hibernated at {noted_at:%H:%M:%S} UTC (shadow)"})
    if is_due:
        return base.model_copy(update={"act": Act.NOTE, "because": "idle for its whole window (shadow: only noted)"})
    return base.model_copy(update={"because": "idle, and its window is not over (shadow: nothing would happen)"})
