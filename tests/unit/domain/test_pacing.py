"""When may the next call to a marketplace be made?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.domain.pacing import GRACE_S, SLACK, WAITERS_MAX, Bucket, Limit, Priority

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CREATES = Limit("create", interval_s=4.5)
ALL = Limit("all", interval_s=1.0, burst=40)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def take(bucket: Bucket, at: datetime, who: str = "me", priority: Priority = Priority.WAKE, limit: Limit = CREATES):
    return bucket.take(limit, who=who, priority=priority, now=at)


def test_the_first_call_is_made_at_once_and_the_second_after_the_interval() -> None:
    bucket, first = take(Bucket.full(CREATES, NOW), NOW)
    bucket, second = take(bucket, later(1))
    bucket, third = take(bucket, later(4.5 * SLACK))

    assert (first, third) == (0, 0)
    assert second == pytest.approx(4.5 * SLACK - 1)


def test_those_who_wait_are_spread_over_the_coming_tokens() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)

    waits = []
    for who in "abcd":
        bucket, wait_s = take(bucket, NOW, who=who)
        waits.append(round(wait_s / (4.5 * SLACK), 6))

    assert waits == [1, 2, 3, 4]


def test_asking_again_does_not_lengthen_ones_own_wait() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)
    bucket, first = take(bucket, NOW)
    _, again = take(bucket, later(1))

    assert again == pytest.approx(first - 1)


def test_while_a_higher_priority_waits_a_lower_one_takes_no_token() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)
    bucket, _ = take(bucket, NOW, who="lost", priority=Priority.FAILOVER)

    bucket, refused = take(bucket, later(5), who="new", priority=Priority.WAKE)
    assert refused > 0
    bucket, granted = take(bucket, later(5), who="lost", priority=Priority.FAILOVER)
    assert granted == 0
    _, granted = take(bucket, later(10), who="new", priority=Priority.WAKE)
    assert granted == 0


def test_who_does_not_come_back_for_its_turn_holds_nobody_up() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)
    bucket, wait_s = take(bucket, NOW, who="gone", priority=Priority.DESTROY)

    _, refused = take(bucket, later(wait_s + GRACE_S - 0.1), priority=Priority.POLL)
    _, granted = take(bucket, later(wait_s + GRACE_S), priority=Priority.POLL)

    assert refused > 0
    assert granted == 0


def test_a_vendors_own_refusal_empties_the_bucket_for_as_long_as_it_says() -> None:
    bucket = Bucket.full(CREATES, NOW).emptied(CREATES, 12.0, NOW)

    assert take(bucket, later(11.9))[1] > 0
    assert take(bucket, later(12.1))[1] == 0


def test_a_clock_that_goes_back_gives_no_tokens() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)

    bucket, refused = take(bucket, later(-3600))
    assert refused > 0
    bucket, _ = take(Bucket.full(ALL, NOW), later(-3600), limit=ALL)
    assert bucket.at == NOW


def test_the_list_of_those_who_wait_has_a_bound() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)
    for n in range(WAITERS_MAX + 50):
        bucket, _ = take(bucket, NOW, who=f"w{n}")

    assert len(bucket.waiting) == WAITERS_MAX


def test_a_bucket_survives_its_document() -> None:
    bucket, _ = take(Bucket.full(CREATES, NOW), NOW)
    bucket, _ = take(bucket, NOW, who="next", priority=Priority.FAILOVER)

    assert Bucket.model_validate(bucket.model_dump(mode="json")) == bucket


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 8), min_size=1, max_size=120),
    askers=st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(Priority)), min_size=120, max_size=120),
    limit=st.sampled_from([CREATES, ALL, Limit("all", interval_s=1.0, burst=40, cost=2)]),
)
def test_in_no_span_are_more_tokens_given_than_the_vendor_allows(
    gaps: list[float], askers: list[tuple[str, Priority]], limit: Limit
) -> None:
    bucket, at, granted = Bucket.full(limit, NOW), NOW, []
    for gap, (who, priority) in zip(gaps, askers, strict=False):
        at += timedelta(seconds=gap)
        bucket, wait_s = take(bucket, at, who, priority, limit)
        if wait_s == 0:
            granted.append(at)

    for index, start in enumerate(granted):
        for count, end in enumerate(granted[index:], start=1):
            span_s = (end - start).total_seconds()
            assert count * limit.cost <= limit.burst + span_s / limit.interval_s + 1e-6


def test_the_limits_of_the_adapters_stay_within_what_the_vendors_state() -> None:
    searches, dock = Vast.limits["search"], TensorDock.limits["list"]

    assert searches.burst + 60 / searches.interval_s <= 10
    assert dock.burst + 60 / dock.interval_s <= 100
    assert {limit.bucket for limit in TensorDock.limits.values()} == {"all"}
    stated_s = {"create": 4.5, "list": 1.0, "get": 2.0, "destroy": 3.0, "charges": 1.0}
    kept_s = {call: limit.interval_s for call, limit in Vast.limits.items() if limit.burst == 1}
    assert kept_s == {**stated_s, "create": 5.0}
