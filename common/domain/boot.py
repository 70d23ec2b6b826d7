"""How long a machine may take to boot, what its market's words mean meanwhile, and when a second one is rented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache

from common.domain.model import Model

USUAL_TIMEOUT_S = 600.0
"""The deployment's `boot_timeout_s` for which BOOT_TIMES is written; with another one, all its times move in step."""
HEDGES_MAX = 1
"""Second machines rented beside a slow one, per round."""


class BootTimes(Model):
    """Seconds from the create call to a host that reports, without the download of the image."""

    usual_s: float
    """Half of the machines are ready sooner."""
    slow_s: float
    """Nine in ten are ready sooner: one that is not is hedged."""
    deadline_s: float
    """Given up then."""
    pulling_deadline_s: float
    """Given up then although its market says that it still downloads or unpacks the image."""

    def scaled(self, factor: float) -> BootTimes:
        return BootTimes(**{name: value * factor for name, value in self.model_dump().items()})


BOOT_TIMES: Mapping[str, BootTimes] = {
    # Vast's documentation: about 30 s when the image is cached, usually under 5 minutes, "over 20 minutes: change the
    # machine". Public controllers give up after 10 minutes (one machine of theirs was ready after 25) or 30.
    "vast": BootTimes(usual_s=60, slow_s=180, deadline_s=600, pulling_deadline_s=1800),
    # No figure is published. It boots a virtual machine, not a container: twice the time is granted, and no message
    # tells a download from a hang.
    "tensordock": BootTimes(usual_s=120, slow_s=360, deadline_s=1200, pulling_deadline_s=1200),
}


@cache
def boot_times(provider: str, boot_timeout_s: float) -> BootTimes:
    """A market that is not in the table is judged as Vast is."""
    return BOOT_TIMES.get(provider, BOOT_TIMES["vast"]).scaled(boot_timeout_s / USUAL_TIMEOUT_S)


class BootProblem(StrEnum):
    """Why an attempt is given up before it is ready."""

    HOST = "host"
    """The machine cannot start containers."""
    IMAGE = "image"
    """Nobody could start this image: not the machine's fault."""
    DEADLINE = "deadline"


FATAL: Mapping[str, BootProblem] = {
    "pull access denied": BootProblem.IMAGE,
    "manifest unknown": BootProblem.IMAGE,
    "manifest for": BootProblem.IMAGE,
    "invalid reference format": BootProblem.IMAGE,
    "oci runtime create failed": BootProblem.HOST,
    "failed to create shim": BootProblem.HOST,
    "failed to create task": BootProblem.HOST,
    "failed to register layer": BootProblem.HOST,
    "layer does not exist": BootProblem.HOST,
    "no space left on device": BootProblem.HOST,
    "could not select device driver": BootProblem.HOST,
    "unsatisfied condition: cuda": BootProblem.HOST,
}
"""Words of a container runtime after which it never comes up, in lower case, first match first."""
PULLING = ("pulling", "downloading", "download complete", "extracting", "verifying checksum", "pull complete")
"""Words of an image on its way, in lower case."""


def boot_problem(
    *, provider: str, message: str, called_at: datetime, boot_timeout_s: float, now: datetime
) -> tuple[BootProblem, str] | None:
    """Why an attempt whose create was called at `called_at` is given up now, with a sentence; None = wait on."""
    said = message.lower()
    for words, problem in FATAL.items():
        if words in said:
            return problem, message
    times, pulling = boot_times(provider, boot_timeout_s), any(word in said for word in PULLING)
    limit_s = times.pulling_deadline_s if pulling else times.deadline_s
    if (now - called_at).total_seconds() <= limit_s:
        return None
    return BootProblem.DEADLINE, f"not ready {limit_s:.0f} s after its create" + (f" ({message})" if message else "")


def hedge_due(
    called_at: Sequence[datetime | None], *, hedges: int, times: BootTimes, image_download_s: float, now: datetime
) -> bool:
    """Is it time to rent a second machine beside those of this round, none of which is ready?

    `called_at` = of each create call of the round (None = not yet made); `image_download_s` = expected of the slowest.
    """
    if hedges >= HEDGES_MAX or not called_at:
        return False
    waits_s = [(now - at).total_seconds() for at in called_at if at is not None]
    return len(waits_s) == len(called_at) and min(waits_s) > times.slow_s + image_download_s
