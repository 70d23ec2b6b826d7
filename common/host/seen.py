"""What the agent has seen of the machine, and whether that is idleness: the samples, and what was said of them last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from common.domain.host import Signal
from common.domain.idle import GPU, Sample, idle_since, is_idle, vetoes
from common.domain.life import UNKNOWN
from common.host.samples import Looks, summary

SAMPLES_KEPT = 1000


class Idleness(Enum):
    BUSY = auto()
    """Or not known."""
    QUIET = auto()
    IDLE = auto()
    """Quiet for the whole window."""


@dataclass
class Seen:
    """`is_serving`: only a serving host can be idle, for a restore or a freeze is work of ours."""

    looks: Looks
    life: Callable[[datetime], tuple[str, ...]]
    """Signs of the user's life besides the GPU, since the last call."""
    samples: list[Sample] = field(default_factory=list)
    signals: dict[str, list[float | None]] = field(default_factory=dict)
    """Since the last report that was answered."""
    idle_for_s: float = 180.0
    """The instance's idle window, as the last reply named it."""
    told: Idleness = Idleness.BUSY
    """What the last report said that was answered."""

    def sample(self, now: datetime, *, is_frozen: bool) -> None:
        look = self.looks.look()
        signs = () if is_frozen else self.life(now)
        sample = Sample(at=now, gpu_percent=look.get("gpu_percent"), signs=signs)
        self.samples = [*self.samples[-SAMPLES_KEPT:], sample]
        for name, value in look.items():
            self.signals.setdefault(name, []).append(value)

    def summaries(self) -> dict[str, Signal]:
        return {name: summary(values) for name, values in self.signals.items()}

    def answered(self, now: datetime, *, is_serving: bool, idle_for_s: float) -> None:
        """A report of all this was answered; `idle_for_s` is the reply's."""
        self.signals, self.told = {}, self.idleness(now, is_serving=is_serving)
        self.idle_for_s = idle_for_s

    def forget(self) -> None:
        self.samples = []

    def has_turned(self, now: datetime, *, is_serving: bool) -> bool:
        """Idle for the whole window, or busy again after it said idle: the control plane hears it at once."""
        idleness = self.idleness(now, is_serving=is_serving)
        return idleness is not self.told and idleness is not Idleness.QUIET

    def idleness(self, now: datetime, *, is_serving: bool) -> Idleness:
        since = self.idle_since(now, is_serving=is_serving)
        if since is None:
            return Idleness.BUSY
        return Idleness.IDLE if is_idle(since, idle_for_s=self.idle_for_s, now=now) else Idleness.QUIET

    def idle_since(self, now: datetime, *, is_serving: bool) -> datetime | None:
        return idle_since(self.samples, now=now, sample_every_s=self.looks.every_s) if is_serving else None

    def vetoes(self, now: datetime, *, is_serving: bool) -> tuple[str, ...]:
        """Why a quiet GPU is not idle. A GPU that works needs no other reason, and a clock that runs again has none."""
        if not is_serving or self.idle_since(now, is_serving=True) is not None:
            return ()
        found = vetoes(self.samples, idle_for_s=self.idle_for_s, now=now)
        return () if GPU in found else found

    def reasons_to_stay_up(self, now: datetime, *, is_serving: bool) -> tuple[str, ...]:
        """Of a machine that is about to be frozen; none while it is idle still."""
        if self.idleness(now, is_serving=is_serving) is Idleness.IDLE:
            return ()
        return vetoes(self.samples, idle_for_s=self.idle_for_s, now=now) or (UNKNOWN,)
