"""How long a machine may boot, what its market's words mean, and when a second one is rented."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from common.domain.boot import BOOT_TIMES, HEDGES_MAX, BootProblem, boot_problem, boot_times, hedge_due

CALLED = datetime(2026, 3, 1, 12, tzinfo=UTC)


def after(seconds: float, message: str = "", provider: str = "vast", timeout_s: float = 600):
    return boot_problem(
        provider=provider,
        message=message,
        called_at=CALLED,
        boot_timeout_s=timeout_s,
        now=CALLED + timedelta(seconds=seconds),
    )


@pytest.mark.parametrize("provider", BOOT_TIMES)
def test_each_market_has_a_deadline_of_its_own(provider: str) -> None:
    deadline_s = BOOT_TIMES[provider].deadline_s

    assert after(deadline_s, provider=provider) is None
    problem, why = after(deadline_s + 1, provider=provider) or (None, "")
    assert problem is BootProblem.DEADLINE
    assert f"{deadline_s:.0f} s" in why


def test_a_machine_that_still_pulls_gets_longer_but_not_for_ever() -> None:
    pulling = "latest: Pulling from pytorch/pytorch, 3 layers downloading"

    assert after(1500, pulling) is None
    assert after(1801, pulling) is not None


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Error: OCI runtime create failed: runc create failed", BootProblem.HOST),
        ("failed to register layer: no space left on device", BootProblem.HOST),
        ("Error response from daemon: manifest unknown", BootProblem.IMAGE),
        ("pull access denied for acme/private", BootProblem.IMAGE),
    ],
)
def test_words_after_which_nothing_comes_up_end_the_attempt_at_once(message: str, problem: BootProblem) -> None:
    assert after(1, message) == (problem, message)


def test_a_deployment_with_shorter_times_keeps_their_proportions() -> None:
    times = boot_times("vast", 60)

    assert (times.slow_s, times.deadline_s, times.pulling_deadline_s) == (18, 60, 180)
    assert after(61, timeout_s=60) is not None


def hedge(*waits_s: float | None, hedges: int = 0, image_download_s: float = 0.0) -> bool:
    return hedge_due(
        [None if wait is None else CALLED - timedelta(seconds=wait) for wait in waits_s],
        hedges=hedges,
        times=boot_times("vast", 600),
        image_download_s=image_download_s,
        now=CALLED,
    )


def test_a_second_machine_is_due_only_when_nine_in_ten_would_be_ready() -> None:
    assert not hedge(180)
    assert hedge(181)


def test_the_expected_download_of_the_image_is_waited_for() -> None:
    assert not hedge(400, image_download_s=300)
    assert hedge(481, image_download_s=300)


def test_no_second_machine_while_a_create_is_still_to_be_made_or_one_was_rented_or_nobody_races() -> None:
    assert not hedge(900, None)
    assert not hedge(900, hedges=HEDGES_MAX)
    assert not hedge()
