"""When a GPU is idle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.domain.idle import Sample, is_idle, is_warned, notice_s, warn_at
from common.domain.idle import idle_since as idle_since_at

START = datetime(2026, 3, 1, tzinfo=UTC)


def samples(*percents: float | None, every_s: float = 5.0) -> list[Sample]:
    return [Sample(at=START + timedelta(seconds=every_s * n), gpu_percent=p) for n, p in enumerate(percents)]


def idle_since(taken: list[Sample]) -> datetime | None:
    """As judged at the newest sample."""
    return idle_since_at(taken, now=taken[-1].at if taken else START)


def test_a_gpu_quiet_for_three_minutes_is_idle() -> None:
    since = idle_since(samples(*[1.0] * 37))

    assert since == START
    assert is_idle(since, idle_for_s=180, now=START + timedelta(seconds=180))


def test_a_gpu_quiet_for_less_is_not_idle() -> None:
    assert not is_idle(START, idle_for_s=180, now=START + timedelta(seconds=179))


def test_one_busy_sample_restarts_the_wait() -> None:
    assert idle_since(samples(0, 0, 60, 0, 0)) == START + timedelta(seconds=15)


def test_a_gpu_that_is_busy_now_is_not_idle() -> None:
    assert idle_since(samples(0, 0, 0, 5.0)) is None


def test_a_missing_sample_is_never_idle() -> None:
    assert idle_since(samples(0, 0, None)) is None
    assert idle_since(samples(0, None, 0)) == START + timedelta(seconds=10)
    assert idle_since([]) is None


def test_a_gap_in_the_telemetry_restarts_the_wait() -> None:
    early, late = samples(0, 0)[0], Sample(at=START + timedelta(minutes=5), gpu_percent=0)

    assert idle_since([early, late]) == late.at


def test_a_negative_utilisation_is_not_believed() -> None:
    assert idle_since(samples(0, -1)) is None


def test_a_gpu_that_nobody_looks_at_any_more_is_not_idle() -> None:
    assert idle_since_at(samples(0, 0), now=START + timedelta(seconds=30)) is None


def test_a_clock_that_went_back_restarts_the_wait() -> None:
    later, earlier = Sample(at=START + timedelta(seconds=60), gpu_percent=0), samples(0)[0]

    assert idle_since([later, earlier]) == earlier.at


# --- the warning before the end


def warned(at_s: float | None, *, idle_for_s: float = 180, awake_until_s: float | None = None) -> bool:
    return is_warned(
        None if at_s is None else START + timedelta(seconds=at_s),
        START,
        idle_for_s=idle_for_s,
        awake_until=None if awake_until_s is None else START + timedelta(seconds=awake_until_s),
    )


@pytest.mark.parametrize(
    ("idle_for_s", "awake_until_s", "expected_s"),
    [
        (180, None, 120),  # a minute before the end
        (3600, None, 3540),
        (12, None, 8),  # a third of a short window
        (180, 600, 540),  # before the lease ends
        (180, 60, 120),  # a lease that ends within the window changes nothing
    ],
)
def test_the_warning_comes_before_the_window_or_the_lease_ends(
    idle_for_s: float, awake_until_s: float | None, expected_s: float
) -> None:
    lease = None if awake_until_s is None else START + timedelta(seconds=awake_until_s)

    assert warn_at(START, idle_for_s=idle_for_s, awake_until=lease) == START + timedelta(seconds=expected_s)


def test_a_warning_counts_for_its_own_spell_of_idleness_and_its_own_lease_only() -> None:
    assert not warned(None)
    assert not warned(-1)
    assert warned(120)
    assert not warned(120, awake_until_s=600)
    assert warned(540, awake_until_s=600)


def test_a_warning_always_stands_for_a_while() -> None:
    assert notice_s(180) == 30
    assert notice_s(3600) == 30
    assert notice_s(12) == 2
