"""The past by the hour: gaps stay gaps, what an answer was cut off before is not absent, and everything has a bound."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from common.domain.offer import Offer, Survey
from common.domain.outlook import HISTORY_HOURS, REGIONS_MAX, UNSEEN, History, Hour, Open, Past, Score
from common.domain.quotes import RECORDED_GPUS, due

START = datetime(2026, 3, 1, tzinfo=UTC)
SEEN = Hour(3, 0.5, 0.3)


def offer(country: str | None = "US", usd: str = "0.50", num_gpus: int = 1, machine: str = "m") -> Offer:
    return Offer(
        provider="vast",
        offer_id="1",
        machine_id=machine,
        gpu="RTX 4090",
        num_gpus=num_gpus,
        gpu_ram_mb=24_564,
        gpu_usd_per_hour=Decimal(usd),
        storage_usd_per_gb_month=Decimal("0.15"),
        country=country,
    )


def survey(*offers: Offer, is_whole: bool = True) -> Survey:
    return Survey(offers=offers, is_whole=is_whole)


def history() -> History:
    return History(provider="vast", gpu="RTX 4090")


@given(st.lists(st.integers(min_value=0, max_value=2_000), max_size=30))
def test_an_hour_stands_where_it_was_seen_and_all_others_are_gaps(hours: list[int]) -> None:
    past = Past(first=0, hours=())
    for hour in hours:
        past = past.noted(hour, SEEN)

    latest = max(hours, default=0)
    rising = [hour for i, hour in enumerate(hours) if hour >= max(hours[:i], default=0)]
    kept = {hour for hour in rising if hour > latest - HISTORY_HOURS}
    assert {past.first + i for i, hour in enumerate(past.hours) if hour != UNSEEN} == kept
    assert len(past.hours) <= HISTORY_HOURS


def test_a_later_look_of_the_same_hour_replaces_the_one_before_unless_it_saw_nothing() -> None:
    past = Past(first=5, hours=()).noted(5, SEEN)

    assert past.noted(5, Hour(1, 0.9, None)).hours == (Hour(1, 0.9, None),)
    assert past.noted(5, UNSEEN).hours == (SEEN,)
    assert past.noted(4, Hour(1, 0.9, None)) == past


def test_a_region_that_a_whole_answer_lacks_had_none_and_one_that_was_cut_off_is_not_known() -> None:
    seen = history().with_look(survey(offer()), START)
    later = START + timedelta(hours=1)

    assert seen.with_look(survey(offer("DE")), later).regions["US"].hours[-1] == Hour(0, None, None)
    assert seen.with_look(survey(offer("DE"), is_whole=False), later).regions["US"].hours[-1] == UNSEEN


def test_the_price_of_one_gpu_of_eight_is_no_price() -> None:
    seen = history().with_look(survey(offer(usd="0.80", num_gpus=8), offer(usd="0.50")), START)

    assert seen.regions["US"].hours == (Hour(1, 0.5, None),)


def test_a_market_of_the_whole_world_for_a_month_fits_into_a_document() -> None:
    codes = [f"{a}{b}" for a in "ABCDEFG" for b in "ABCDEFGH"]
    full = tuple(Hour(123, 12.34567, 10.34567) for _ in range(HISTORY_HOURS))
    hour = int(START.timestamp() // 3600)
    old = {code: Past(first=hour - HISTORY_HOURS, hours=full) for code in codes[:REGIONS_MAX]}
    seen = history().model_copy(update={"regions": old}).with_look(survey(*map(offer, codes)), START)

    assert len(seen.regions) == REGIONS_MAX
    assert len(json.dumps(seen.packed())) < 2**20


def test_a_score_compares_what_was_served_with_the_last_value() -> None:
    served = Open(made=1, horizon_h=1, last=1.0, p10=0.9, p50=1.1, p90=1.2)
    score = Score(horizon_h=1).with_outcome(served, 1.1).with_outcome(served, 2.0).with_outcome(served, None)

    assert (score.n, score.covered, score.unscored) == (2, 1, 1)
    assert score.rmae is not None
    assert score.rmae < 1
    assert Score(horizon_h=1).with_outcome(served, 1.0).rmae is None


def test_every_model_has_its_turn_as_often_as_any_other() -> None:
    turns = [gpu for slot in range(7 * len(RECORDED_GPUS)) for gpu in due(slot, RECORDED_GPUS, 2)]

    assert {turns.count(gpu) for gpu in RECORDED_GPUS} == {14}
    assert due(3, ["a"], 2) == ["a"]
