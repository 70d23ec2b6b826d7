"""Is a deployment well? Findings, each with its mend, and probes that only the outside can make."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from common.domain.model import Model

MISSED_RUNS = 3
"""So many periods of a schedule may pass before its silence is a failure."""
SKEW_WARNS_S = 2.0
SKEW_FAILS_S = 60.0
"""A webhook's signature is good for minutes: a clock that is off by one is already wrong."""


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and somebody should look."""
    FAILED = "failed"


class Finding(Model):
    """What one check saw."""

    check: str
    verdict: Verdict
    found: str
    mend: str | None = None
    """What to do; None when nothing is to be done."""


class Probe(Model):
    """One request from outside, and the answer that proves the way to the function and the secret they share."""

    check: str
    url: str
    token: str | None
    expected: tuple[int, ...]
    """HTTP statuses."""
    mend: str


class Run(Model):
    """The document `runs/<job>`: when a schedule's job last ran, and how it ended."""

    schema_version: int = 1
    at: datetime
    """Its end."""
    seconds: float
    failed: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, verdict=Verdict.OK, found=found)


def warning(check: str, found: str, mend: str) -> Finding:
    return Finding(check=check, verdict=Verdict.WARNING, found=found, mend=mend)


def failed(check: str, found: str, mend: str) -> Finding:
    return Finding(check=check, verdict=Verdict.FAILED, found=found, mend=mend)


def of_schedule(name: str, run: Run | None, *, every_s: float, now: datetime) -> Finding:
    """Has the job run within MISSED_RUNS of its periods, and did it end well?"""
    check = f"schedule {name}"
    mend = f"look at the job {name.replace('_', '-')} in Cloud Scheduler; create it again with: dumont deploy apply"
    if run is None:
        return failed(check, "it has never run", mend)
    ago_s = (now - run.at).total_seconds()
    if now - run.at > timedelta(seconds=MISSED_RUNS * every_s + run.seconds):
        return failed(check, f"its last run ended {ago_s:.0f} s ago, and it is due every {every_s:.0f} s", mend)
    if run.failed:
        return failed(check, f"its last run failed: {run.failed}", f"read the log of the function {name}")
    return ok(check, f"ended {ago_s:.0f} s ago, took {run.seconds:.1f} s")


def of_clocks(server: datetime, here: datetime, round_trip_s: float) -> Finding:
    """The server's clock beside the one of whoever asks; the answer's way may take any part of the round trip."""
    skew_s = max(0.0, abs((here - server).total_seconds()) - round_trip_s - 1.0)  # an HTTP date has whole seconds
    found = f"the clocks of the deployment and of this machine differ by at most {skew_s + 1:.0f} s"
    mend = "set this machine's clock by NTP: signatures and tokens are judged by their age"
    if skew_s > SKEW_FAILS_S:
        return failed("clock", found, mend)
    return warning("clock", found, mend) if skew_s > SKEW_WARNS_S else ok("clock", found)


def of_probe(probe: Probe, status: int | None, reason: str = "") -> Finding:
    """`status` None = nobody answered."""
    if status in probe.expected:
        return ok(probe.check, f"{probe.url} answers {status} as it must")
    said = f"answers {status}" if status is not None else f"does not answer: {reason}"
    expected = " or ".join(str(number) for number in probe.expected)
    return failed(probe.check, f"{probe.url} {said}, not {expected}", probe.mend)


def worst(findings: Sequence[Finding]) -> Verdict:
    order = (Verdict.OK, Verdict.WARNING, Verdict.FAILED)
    return max((finding.verdict for finding in findings), key=order.index, default=Verdict.OK)
