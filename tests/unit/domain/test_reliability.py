"""Whose fault an end was, and when a machine is no longer rented."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain.reliability import (
    BLOCKED_BELOW,
    FAULT,
    FROM_LOSS,
    HALF_LIFE,
    Fault,
    MachineRecord,
    Outcome,
    blocked_until,
    success_bound,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def after(*outcomes: Outcome, every: timedelta = timedelta(0)) -> MachineRecord:
    record = MachineRecord(provider="vast", machine_id="m1", at=NOW)
    for n, outcome in enumerate(outcomes):
        record = record.noting(outcome, gpu="RTX 4090", at=NOW + n * every)
    return record


def test_every_outcome_and_every_loss_has_a_fault() -> None:
    assert set(FAULT) == set(Outcome)
    assert all(FAULT[outcome] is Fault.HOST for outcome in FROM_LOSS.values())


@pytest.mark.parametrize("outcome", [o for o in Outcome if FAULT[o] in (Fault.OURS, Fault.MARKET)])
def test_what_the_market_or_the_user_did_is_never_blamed_on_the_machine(outcome: Outcome) -> None:
    record = after(*[outcome] * 50)

    assert record == after()
    assert not record.is_blocked(NOW)


def test_one_failure_of_one_try_does_not_ban_and_four_of_four_do() -> None:
    assert not after(Outcome.BOOT_FAILED).is_blocked(NOW)
    assert not after(*[Outcome.LOST] * 3).is_blocked(NOW)
    assert after(*[Outcome.LOST] * 4).is_blocked(NOW)


def test_a_machine_that_mostly_serves_is_not_blocked_by_a_bad_week() -> None:
    assert not after(*[Outcome.SERVED] * 10, *[Outcome.INTERRUPTED] * 4).is_blocked(NOW)


def test_a_block_ends_by_itself_and_further_failures_bring_it_back_for_longer() -> None:
    record = after(*[Outcome.LIED] * 4)
    assert record.blocked_until
    tried_again = record.noting(Outcome.LIED, gpu="RTX 4090", at=record.blocked_until)

    assert not record.is_blocked(record.blocked_until)
    assert tried_again.blocked_until
    assert tried_again.blocked_until - record.blocked_until > record.blocked_until - NOW


def test_outcomes_count_half_after_the_half_life() -> None:
    good, bad = after(Outcome.SERVED, Outcome.LOST).weights(NOW + HALF_LIFE)

    assert (good, bad) == (0.5, 0.5)


def test_failures_far_apart_never_block() -> None:
    assert after(*[Outcome.LOST] * 40, every=timedelta(days=14)).blocked_until is None


@given(good=st.floats(0, 1000), bad=st.floats(0, 1000))
def test_the_bound_is_a_rate_never_below_the_observed_one_and_unknown_is_trusted(good: float, bad: float) -> None:
    bound = success_bound(good, bad)

    assert 0 <= bound <= 1
    if good + bad > 0:
        assert bound >= good / (good + bad) - 1e-9
    assert success_bound(0, 0) == 1.0


@given(good=st.floats(0, 50), bad=st.floats(0, 500))
def test_a_block_ends_exactly_when_the_decayed_bound_reaches_the_limit(good: float, bad: float) -> None:
    until = blocked_until(good, bad, NOW)
    if until is None:
        assert success_bound(good, bad) >= BLOCKED_BELOW
    else:
        left = 0.5 ** ((until - NOW) / HALF_LIFE)
        assert success_bound(good * left, bad * left) == pytest.approx(BLOCKED_BELOW, abs=1e-6)
