"""What is judged well and what not: schedules, clocks, probes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.domain.health import Probe, Run, Verdict, of_clocks, of_probe, of_schedule, ok, warning, worst
from common.topology import Schedule

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROBE = Probe(check="way to provision", url="https://x/provision", token=None, expected=(401,), mend="deploy it")


@pytest.mark.parametrize(
    ("run", "verdict", "says"),
    [
        (None, Verdict.FAILED, "never run"),
        (Run(at=NOW - timedelta(seconds=100), seconds=2), Verdict.OK, "ended 100 s ago"),
        (Run(at=NOW - timedelta(seconds=183), seconds=2), Verdict.FAILED, "due every 60 s"),
        (Run(at=NOW - timedelta(seconds=183), seconds=9), Verdict.OK, "took 9.0 s"),
        (Run(at=NOW, seconds=2, failed="Stale: x"), Verdict.FAILED, "Stale: x"),
    ],
)
def test_a_schedule_is_well_when_its_job_ended_well_within_three_periods(
    run: Run | None, verdict: Verdict, says: str
) -> None:
    found = of_schedule("reconcile", run, every_s=60, now=NOW)

    assert (found.verdict, says in found.found) == (verdict, True)
    assert (found.mend is None) == (verdict is Verdict.OK)


@pytest.mark.parametrize(
    ("off_s", "round_trip_s", "verdict"),
    [(0, 0.1, "ok"), (-0.9, 0.1, "ok"), (3, 5, "ok"), (10, 0.1, "warning"), (-10, 0.1, "warning"), (90, 0.1, "failed")],
)
def test_clocks_are_compared_no_finer_than_the_answer_allows(off_s: float, round_trip_s: float, verdict: str) -> None:
    assert of_clocks(NOW + timedelta(seconds=off_s), NOW, round_trip_s).verdict == verdict


@pytest.mark.parametrize("status", [None, 200, 403, 404, 500])
def test_a_probe_that_is_not_answered_as_it_must_names_its_mend(status: int | None) -> None:
    found = of_probe(PROBE, status, "ConnectTimeout")

    assert (found.verdict, found.mend) == (Verdict.FAILED, "deploy it")
    assert ("ConnectTimeout" in found.found) == (status is None)


def test_the_worst_finding_is_the_verdict() -> None:
    fine, odd = ok("a", "x"), warning("b", "y", "z")

    assert worst([]) is Verdict.OK
    assert worst([fine, odd, fine]) is Verdict.WARNING
    assert worst([odd, of_probe(PROBE, 500), fine]) is Verdict.FAILED


@pytest.mark.parametrize(
    ("cron", "seconds"),
    [("* * * * *", 60), ("*/5 * * * *", 300), ("7 * * * *", 3600), ("0 */6 * * *", 21_600), ("30 3 * * *", 86_400)]
)  # fmt: skip
def test_a_schedule_knows_how_far_its_runs_are_apart(cron: str, seconds: float) -> None:
    assert Schedule("job", cron, 60).every_s == seconds
