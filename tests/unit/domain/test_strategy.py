"""Which offers are rented, in which order, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from common.domain.offer import Offer
from common.domain.ranking import Load, Ranked, rank
from common.domain.strategy import RACERS, RENTALS_PER_ROUND, Strategy, choose, choose_hedge

LOAD = Load(disk_gb=32, image_gb=6, snapshot_gb=0)


def offer(n: int = 1, *, usd: str = "1", mbit_s: float = 1000, country: str = "US", **changes: object) -> Offer:
    facts = {
        "provider": "vast",
        "offer_id": f"o{n}",
        "machine_id": f"m{n}",
        "gpu": "RTX 4090",
        "num_gpus": 1,
        "gpu_ram_mb": 24564,
        "gpu_usd_per_hour": Decimal(usd),
        "storage_usd_per_gb_month": Decimal("0.225"),
        "download_mbit_s": mbit_s,
        "country": country,
    }
    return Offer.model_validate(facts | changes)


def ranked(*offers: Offer, load: Load = LOAD, blocked: dict | None = None) -> list[Ranked]:
    return rank(offers, load, boot_timeout_s=600, blocked=blocked)


def machines(chosen: list[Ranked]) -> list[str]:
    return [one.offer.machine_id for one in chosen]


def test_every_strategy_has_its_number_of_rentals() -> None:
    assert set(RENTALS_PER_ROUND) == set(Strategy)


def test_the_parts_of_a_price_add_up_and_carry_their_units() -> None:
    (one,) = ranked(
        offer(download_usd_per_gb="0.02", upload_usd_per_gb="0.01"),
        load=Load(disk_gb=32, image_gb=6, snapshot_gb=100),
    )

    assert one.usd_per_hour == Decimal("1.01")
    assert one.image_download_s == 48.0
    assert one.snapshot_download_s == 800.0
    assert one.ready_s == one.boot_s + 848
    assert one.bandwidth_usd == Decimal("0.02") * 106 + Decimal("0.01") * 20
    assert float(one.waiting_usd) == pytest.approx(0.01 * (60 + 48) / 3600 + 1.01 * 800 / 3600)
    assert one.all_in_usd_per_hour == one.usd_per_hour + (one.bandwidth_usd + one.waiting_usd) / 4
    assert float(one.rank_usd_per_hour - one.all_in_usd_per_hour) == pytest.approx(908 / 3600 / 4)


def test_a_cheap_machine_on_a_slow_line_ranks_behind_a_dearer_fast_one() -> None:
    slow, fast = offer(1, usd="0.30", mbit_s=50), offer(2, usd="0.35", mbit_s=2000)
    heavy = Load(disk_gb=200, image_gb=6, snapshot_gb=100)

    assert machines(ranked(slow, fast, load=heavy)) == ["m2", "m1"]
    assert machines(ranked(slow, fast, load=Load(disk_gb=32, image_gb=0.1))) == ["m1", "m2"]


def test_dear_bandwidth_outweighs_a_cheaper_hour() -> None:
    metered = offer(1, usd="0.30", download_usd_per_gb="0.05")
    free = offer(2, usd="0.40")

    assert machines(ranked(metered, free, load=Load(disk_gb=200, snapshot_gb=50))) == ["m2", "m1"]


def test_a_race_takes_five_machines_and_a_machine_only_once() -> None:
    offers = [offer(n, usd=f"1.{n}") for n in range(8)] + [offer(0, usd="1.05", offer_id="again")]
    chosen = choose(ranked(*offers), Strategy.RACE)

    assert machines(chosen) == ["m0", "m1", "m2", "m3", "m4"]
    assert len(chosen) == RACERS


@pytest.mark.parametrize("strategy", [Strategy.COLDSTART, Strategy.SERVERLESS])
def test_a_cold_start_takes_the_best_untried_machine_and_all_again_when_all_were_tried(strategy: Strategy) -> None:
    offers = ranked(*(offer(n, usd=f"1.{n}") for n in range(3)))

    assert machines(choose(offers, strategy)) == ["m0"]
    assert machines(choose(offers, strategy, tried=["m0"])) == ["m1"]
    assert machines(choose(offers, strategy, tried=["m0", "m1", "m2"])) == ["m0"]


def test_a_round_robin_goes_round_markets_and_countries() -> None:
    offers = ranked(
        offer(1, usd="1.0", country="US"),
        offer(2, usd="1.1", country="US"),
        offer(3, usd="1.2", country="NO"),
        offer(4, usd="1.3", provider="tensordock"),
    )
    tried: list[str] = []
    for turn in range(4):
        tried += machines(choose(offers, Strategy.ROUNDROBIN, tried=tried, turn=turn))

    assert sorted(tried) == ["m1", "m2", "m3", "m4"]
    assert {tried.index("m1"), tried.index("m2")} != {0, 1}
    places = [{"m1": "US", "m2": "US", "m3": "NO", "m4": "td"}[machine] for machine in tried]
    assert len(set(places[:3])) == 3


@pytest.mark.parametrize("strategy", Strategy)
def test_a_blocked_machine_is_never_chosen_though_it_is_shown_last(strategy: Strategy) -> None:
    until = datetime(2026, 3, 2, tzinfo=UTC)
    offers = ranked(offer(1, usd="0.1"), offer(2), blocked={"vast:m1": until})

    assert machines(offers) == ["m2", "m1"]
    assert offers[1].blocked_until == until
    assert machines(choose(offers, strategy, tried=["m2"])) == ["m2"]
    assert choose(offers[1:], strategy) == []


def test_a_hedge_is_never_the_machine_that_is_slow() -> None:
    offers = ranked(offer(1), offer(2, usd="2"))

    hedge = choose_hedge(offers, tried=["m1"])
    assert hedge
    assert hedge.offer.machine_id == "m2"
    assert choose_hedge(offers, tried=["m1", "m2"]) is None
