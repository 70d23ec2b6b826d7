"""The recorded market: looked at by the schedule, forecast once an hour, scored when the hour has come, served by REST,
command line and Slack."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.adapters.s3 import S3
from common.cli import fleet, session
from common.domain.account import Role
from common.domain.outlook import HORIZONS_H, History, Outlook
from common.domain.quotes import QuoteHour, hour_of
from infra.demo.s3_server import S3Server
from infra.demo.vast import VastSim
from infra.deploy.cost import POLL_RUN
from jobs import poll_prices
from tests.bench.bench_cost import Counting
from tests.functions.conftest import Api, key_for
from tests.functions.slack_people import Somebody, text_of
from tests.functions.test_cli import signed_in
from tests.functions.test_rest import problem
from tests.hand_cranked import World

__all__ = ["signed_in"]
GPU = "RTX 4090"
ID = "vast.rtx-4090"
run = CliRunner()


@pytest.fixture
def both(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects, with_tensordock=True)
    yield made
    made.close()


def look(world: World, turns: int = 5) -> dict[str, list[str]]:
    """So many runs of the schedule, one each five minutes: five see every model once."""
    done: dict[str, list[str]] = {}
    for _ in range(turns):
        world.now += timedelta(seconds=world.timing.market_every_s)
        for name, ids in poll_prices.run(world.app).items():
            if isinstance(ids, list):
                done.setdefault(name, []).extend(ids)
    return done


def hours(world: World, count: int) -> None:
    """So many hours in which only this model is looked at, once an hour, while its prices wander."""
    for n in range(count):
        world.now += timedelta(hours=1)
        for machine in world.sim.machines(GPU):
            usd = 0.4 + 0.1 * math.sin(n / 5) + 0.003 * (machine["machine_id"] % 7)
            world.sim.tamper(machine["machine_id"], dph_base=f"{usd:.4f}")
        look_at(world)


def look_at(world: World, gpu: str = GPU) -> None:
    from common.workflows import record_market

    record_market._look_at(world.app, "vast", [gpu], record_market.Seen(), world.now - timedelta(seconds=1))


def quotes(world: World, id: str = ID) -> QuoteHour:
    doc = world.store.get("quotes", f"{id}.{hour_of(world.now)}")
    assert doc
    return QuoteHour.unpacked(doc.data)


def outlook(world: World, id: str = ID) -> Outlook:
    doc = world.store.get("outlooks", id)
    assert doc
    return Outlook.unpacked(doc.data)


# --- recording


def test_both_markets_are_recorded_machine_by_machine(both: World) -> None:
    done = look(both)

    vast, dock = quotes(both), quotes(both, "tensordock.rtx-4090")
    assert len(done["looked"]) == 20
    assert set(vast.slices) == {f"{machine['machine_id']}x1" for machine in both.sim.machines(GPU)}
    assert len(dock.slices) == 5
    first = both.sim.machines(GPU)[0]
    assert vast.slices[f"{first['machine_id']}x1"].quotes[0].usd_per_hour == float(first["dph_base"])
    assert vast.slices[f"{first['machine_id']}x1"].quotes[0].bid_floor_usd_per_hour == float(first["min_bid"])
    assert all(quote.bid_floor_usd_per_hour is None for slice in dock.slices.values() for quote in slice.quotes)


def test_two_runs_in_a_minute_are_one_look(world: World) -> None:
    first = poll_prices.run(world.app)
    searches = len(world.sim._searches)
    world.now += timedelta(seconds=20)
    again = poll_prices.run(world.app)

    assert len(first["looked"]) == 2  # type: ignore[arg-type]
    assert (again["looked"], again["skipped"]) == ([], first["looked"])
    assert len(world.sim._searches) == searches


def test_a_run_keeps_within_the_vendors_limits_and_leaves_searches_to_people(world: World) -> None:
    for _ in range(4):
        look_at(world)  # a schedule gone mad

    bucket = world.store.get("pacing", "vast.search")
    assert bucket
    assert bucket.data["tokens"] >= 2
    assert world.throttled == []


def test_a_quota_that_is_used_up_is_not_asked_again_before_midnight(world: World) -> None:
    world.sim.search_quota_used = True
    refused = poll_prices.run(world.app)
    world.sim.search_quota_used = False
    same_day = look(world)
    world.now = world.now.replace(hour=0, minute=1) + timedelta(days=1)
    next_day = poll_prices.run(world.app)

    assert refused["refused"] == ["vast"]
    assert same_day.get("looked", []) == []
    assert len(next_day["looked"]) == 2  # type: ignore[arg-type]


def test_a_market_that_does_not_answer_leaves_a_gap_and_the_other_one_is_recorded(both: World) -> None:
    look_at(both)
    both.sim.search_quota_used = True
    both.now += timedelta(hours=2)
    done = look(both, turns=1)
    both.sim.search_quota_used = False
    both.now += timedelta(hours=1)
    look_at(both)

    doc = both.store.get("market_history", ID)
    assert doc
    past = next(iter(History.unpacked(doc.data).regions.values()))
    assert {id.partition(".")[0] for id in done["looked"]} == {"tensordock"}
    assert [hour.machines is None for hour in past.hours] == [False, True, True, False]


def test_a_machine_that_left_shows_no_quote_and_one_that_came_back_is_the_same_series(world: World) -> None:
    gone, key = world.sim.machines(GPU)[0], f"{world.sim.machines(GPU)[0]['machine_id']}x1"
    world.now = world.now.replace(minute=5)
    look_at(world)
    world.sim.leave(gone["machine_id"])
    world.now += timedelta(minutes=25)
    look_at(world)
    world.sim.come_back(gone["machine_id"])
    world.now += timedelta(minutes=25)
    look_at(world)

    hour = quotes(world)
    assert len(hour.looks) == 3
    assert [quote.look for quote in hour.slices[key].quotes] == [0, 2]


def test_a_run_costs_the_same_few_operations_however_large_the_market_is(both: World) -> None:
    look(both)
    store = Counting(both.store)
    both.app = dataclasses.replace(both.app, store=store)
    look(both, turns=1)

    assert store.counts["reads"] <= POLL_RUN.reads
    assert store.counts["writes"] <= POLL_RUN.writes


def test_documents_expire_and_fit_into_the_store_on_a_full_market(world: World) -> None:
    pattern = world.sim.machines(GPU)[0]
    many = [{**pattern, "machine_id": 50_000 + n} for n in range(600)]
    world.sim = VastSim(rng=random.Random(1), api_key="sim-key", machines=many)
    for _ in range(15):
        world.now += timedelta(minutes=4)
        look_at(world)

    hour_docs = [doc for hour in range(3) if (doc := world.store.get("quotes", f"{ID}.{hour_of(world.now) - hour}"))]
    sizes = [len(json.dumps(doc.data, default=str)) for doc in hour_docs]
    assert max(sizes) < 2**20
    assert all("expires_at" in doc.data for doc in hour_docs)
    assert not outlook(world).is_whole


# --- forecasts, served and scored


def test_every_forecast_is_made_once_an_hour_and_scored_when_its_hour_has_come(world: World) -> None:
    hours(world, 60)

    region = next(region for region in outlook(world).regions.values() if region.now)
    assert {forecast.horizon_s // 3600 for forecast in region.forecasts} == set(HORIZONS_H)
    assert {h: score.n for h, score in region.scores.items()} == {h: 60 - h for h in HORIZONS_H}
    assert len(region.open) == sum(HORIZONS_H)
    assert all(score.unscored == 0 for score in region.scores.values())
    world.now += timedelta(minutes=5)
    look_at(world)
    assert next(r for r in outlook(world).regions.values() if r.now).open == region.open


def test_a_forecast_whose_hour_nobody_saw_is_counted_and_not_scored(world: World) -> None:
    hours(world, 10)
    world.now += timedelta(hours=3)
    look_at(world)

    region = next(region for region in outlook(world).regions.values() if region.now)
    assert region.scores[1].n == 9
    assert region.scores[1].unscored == 1


def test_the_api_serves_prices_bands_survival_bids_and_the_waiting_rule(world: World, admin: Api) -> None:
    hours(world, 24 * 12)

    found = admin.get("/spot/market?gpu=rtx_4090").json
    row = found["rent_now"]
    day = next(forecast for forecast in row["forecasts"] if forecast["horizon_s"] == 86_400)
    bare = min(float(item["now"]["usd_per_hour"]) for item in found["items"] if item["now"])
    assert float(row["now"]["usd_per_hour"]) < float(row["now"]["with_disk_usd_per_hour"])
    assert float(row["now"]["with_disk_usd_per_hour"]) <= float(row["now"]["all_in_usd_per_hour"])
    assert bare == min(float(machine["dph_base"]) for machine in world.sim.machines(GPU))
    assert day["p10"] <= day["p50"] <= day["p90"]
    assert day["served"] == 24 * 11
    assert day["served_rmae"] is not None
    assert 0 < row["survival"]["6h"] <= row["survival"]["1h"] < 1
    assert 0 < row["discount"] < 1
    assert row["availability_24h"] == 1.0
    assert float(row["bid"]["usd_per_hour"]) >= float(row["bid_floor_usd_per_hour"])
    assert 0 <= row["bid"]["outbid_within_24h"] <= 1
    assert row["wait"]["n"] > 0
    assert {item["region"] for item in found["items"]} == {
        machine["geolocation"].rpartition(" ")[2] for machine in world.sim.machines(GPU)
    }


def test_advice_of_an_hour_is_that_of_its_newest_price(world: World, admin: Api) -> None:
    hours(world, 24 * 12)
    region = admin.get("/spot/market?gpu=rtx_4090").json["rent_now"]["region"]

    def row() -> Any:
        return admin.get(f"/spot/market?gpu=rtx_4090&region={region}").json["rent_now"]

    def row_at(usd: float, floor: float) -> Any:
        world.now += timedelta(minutes=10)
        for machine in world.sim.machines(GPU):
            world.sim.tamper(machine["machine_id"], dph_base=f"{usd:.4f}", min_bid=f"{floor:.4f}")
        look_at(world)
        return row()

    bid = row()["bid"]["usd_per_hour"]
    dear, cheap = row_at(usd=bid * 3, floor=bid * 2), row_at(usd=bid / 2, floor=bid / 4)

    assert (dear["wait"]["wait"], cheap["wait"]["wait"]) == (True, False)
    assert dear["bid"] is None, "a bid below what is taken now rents nothing"
    assert cheap["bid"] is None, "a bid above the price on demand pays more for less"


def test_a_flat_market_shows_no_trend_and_a_thin_one_says_less(world: World, admin: Api) -> None:
    hours(world, 3)

    row = admin.get("/spot/market?gpu=RTX%204090").json["rent_now"]
    assert all(forecast["trend"] is None for forecast in row["forecasts"])
    assert (row["wait"], row["bid"]) == (None, None)


def test_filters_take_what_is_meant_and_refuse_the_rest(both: World, admin_of_both: Api) -> None:
    look(both)
    api = admin_of_both

    in_us = api.get("/spot/market?region=us&provider=vast").json["items"]
    assert {(row["region"], row["provider"]) for row in in_us} == {("US", "vast")}
    assert {row["gpu"] for row in api.get("/spot/market").json["items"]} > {"RTX 4090", "H100 SXM"}
    problem(api.get("/spot/market?gpu=RTX%201"), 422, "unknown_gpu")
    problem(api.get("/spot/market?region=Texas"), 422, "invalid_input")
    problem(api.get("/spot/market?colour=red"), 422, "invalid_input")
    assert Api(both, None).get("/spot/market").status_code == 401


@pytest.fixture
def admin_of_both(both: World) -> Api:
    return Api(both, key_for(both, "acme", Role.ADMIN))


def test_nothing_recorded_is_an_empty_answer(world: World, admin: Api) -> None:
    found = admin.get("/spot/market").json

    assert (found["items"], found["rent_now"], found["as_of"]) == ([], None, None)


def test_a_price_is_one_of_now_until_its_model_has_missed_twelve_turns(world: World, admin: Api) -> None:
    look(world, turns=5)
    turn = timedelta(minutes=25)
    world.now += 11 * turn
    before = admin.get("/spot/market?gpu=RTX%204090").json["rent_now"]
    world.now += 2 * turn

    assert before is not None
    assert admin.get("/spot/market?gpu=RTX%204090").json["rent_now"] is None


def test_a_price_of_yesterday_is_not_shown_as_one_of_now(world: World, admin: Api) -> None:
    hours(world, 5)
    world.now += timedelta(days=1)

    found = admin.get("/spot/market?gpu=RTX%204090").json

    assert found["rent_now"] is None
    assert all(row["now"] is None and not row["forecasts"] and row["availability_7d"] for row in found["items"])


def test_the_command_line_shows_it(signed_in: World) -> None:
    hours(signed_in, 30)

    shown = run.invoke(fleet.gpus, ["market", "--gpu", GPU], env={"COLUMNS": "240"})
    as_json = json.loads(run.invoke(fleet.gpus, ["market", "--json"]).stdout)
    unknown = run.invoke(fleet.gpus, ["market", "--gpu", "RTX 1"])
    nowhere = run.invoke(fleet.gpus, ["market", "--provider", "nope"])

    assert "rent now: RTX 4090 in" in shown.stdout
    assert as_json["rent_now"]["gpu"] == GPU
    assert unknown.exit_code == session.MARKET
    assert "nothing is recorded of nope" in nowhere.stdout


def test_slack_shows_offers_and_the_outlook(world: World) -> None:
    hours(world, 30)

    told = text_of(Somebody(world).is_linked().asks("market RTX 4090").content)

    assert "offers of RTX 4090" in told
    assert "in 24 h" in told
    assert "alive in 1h" in told


# --- the coefficients


def test_coefficients_are_refitted_once_a_day_and_only_where_they_judge_better(world: World) -> None:
    rare = world.sim.machines(GPU)
    for n in range(24 * 14):
        world.now += timedelta(hours=1)
        is_up = (n // 3) % 2 == 0  # three hours there, three hours away
        for machine in rare:
            (world.sim.come_back if is_up else world.sim.leave)(machine["machine_id"])
        look_at(world)

    from common.workflows import record_market

    first = record_market.refit(world.app, world.now)
    again = record_market.refit(world.app, world.now + timedelta(hours=1))
    fitted = record_market.coefficients(world.app)
    assert first is not None
    assert first.startswith("fitted on")
    assert again is None
    assert "recorded regions" in fitted.fitted_on


def test_coefficients_of_another_version_are_not_used(world: World) -> None:
    from common.domain import survival
    from common.workflows import record_market

    old = {**survival.shipped().model_dump(mode="json"), "features": ["height"]}
    world.store.put("coefficients", "survival", {"tried_at": world.now, "coefficients": old})

    assert record_market.coefficients(world.app) is survival.shipped()
