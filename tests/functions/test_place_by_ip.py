"""A marketplace that does not say where its machines stand: the country of their address does, and is shown as such."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from common.adapters.s3 import S3
from common.cli import session
from common.cli.fleet import gpus
from common.cli.standby import standby
from common.domain.account import Role
from common.domain.instance import Protection, State
from common.domain.region import region_of
from common.records import dump, load
from common.web import rest
from common.workflows import standby as steps
from common.workflows.offers import FRESH_FOR_S
from infra.demo.s3_server import S3Server
from tests.functions.conftest import Api, key_for
from tests.hand_cranked import ACCOUNT, World

GPU = "H100 SXM"
ALIKE = {"dph_base": "2.0000", "storage_cost": "0.10", "inet_down": 1000.0, "inet_down_cost": "0.000"}
HELSINKI, REYKJAVIK, PRIVATE = "128.214.1.1", "130.208.1.1", "10.0.0.1"


@pytest.fixture
def world(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects, with_google=True)
    yield made
    made.close()


@pytest.fixture
def admin(world: World) -> Api:
    return Api(world, key_for(world, "acme", Role.ADMIN))


def cli(world: World, app: typer.Typer, words: list[str]) -> str:
    """What `dumont` shows on a wide terminal."""
    env = {
        "DUMONT_API_URL": "http://api.test",
        "DUMONT_API_KEY": key_for(world, "acme", Role.VIEWER),
        "COLUMNS": "300",
    }
    session.transport = httpx.WSGITransport(app=rest.application(world.app))
    try:
        return CliRunner().invoke(app, words, env=env).output
    finally:
        session.transport = None


def say(world: World, **facts: str | float) -> None:
    """Of every machine of the market alike."""
    for machine in world.sim.machines(GPU):
        world.sim.tamper(machine["machine_id"], **facts)


def test_a_standby_is_rented_near_the_country_of_the_gpus_address_and_says_that_this_is_all_it_knows(
    world: World, admin: Api
) -> None:
    say(world, geolocation="", public_ipaddr=HELSINKI)
    id = world.provision()
    world.until(lambda: world.show(id).protection is Protection.MIRRORED)

    (shown,) = admin.get("/standby").json["items"]

    assert region_of(shown["zone"]) == "europe-north1"
    assert shown["gpu_place_told_by"] == "ip"
    assert re.search(r"\d to \d+\.\d \(by its IP\)", cli(world, standby, ["list"]))
    assert shown["estimated_rtt_far_ms"] > shown["estimated_rtt_ms"] < 20


def test_an_address_that_is_nobodys_leaves_the_instance_without_a_standby_and_a_reason(
    world: World, admin: Api
) -> None:
    say(world, geolocation="somewhere", public_ipaddr=PRIVATE)
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    world.pass_time(60)

    (shown,) = admin.get("/standby").json["items"]

    assert shown["zone"] is None
    assert "nobody can tell where the GPU stands" in shown["why"]


def test_an_address_that_only_the_rented_machine_told_is_good_enough(world: World) -> None:
    """TensorDock's offers have none."""
    say(world, geolocation="", public_ipaddr="")
    id = world.provision()
    world.until(lambda: world.show(id).state is State.RUNNING)
    assert steps.plan(world.app, load(world.app, f"{ACCOUNT}.{id}"), world.now) is False
    writer = load(world.app, f"{ACCOUNT}.{id}").writer
    assert writer

    world.store.cas(writer.doc, dump(writer.value.model_copy(update={"ssh_host": HELSINKI})))

    assert steps.plan(world.app, load(world.app, f"{ACCOUNT}.{id}"), world.now) is True
    assert world.record(id).address_region == "europe-north1"


def test_a_far_machine_without_a_text_is_ranked_down_and_the_offer_says_how_its_place_is_known(
    world: World, admin: Api
) -> None:
    say(world, geolocation="Finland, FI", public_ipaddr=HELSINKI, **ALIKE)
    before = admin.get(f"/offers?gpu={GPU}").json["items"]
    best = before[0]["machine_id"]
    assert (before[0]["place_told_by"], before[0]["place_country"]) == ("text", "FI")

    world.sim.tamper(best, geolocation="", public_ipaddr=REYKJAVIK)
    world.now += timedelta(seconds=2 * FRESH_FOR_S)
    after = {offer["machine_id"]: offer for offer in admin.get(f"/offers?gpu={GPU}").json["items"]}

    assert next(iter(after)) != best
    assert after[best]["place_told_by"] == "ip"
    assert after[best]["geolocation"] is None
    assert "IS by its IP" in cli(world, gpus, ["list", "--gpu", GPU])
    assert after[best]["usd_per_hour"] == before[0]["usd_per_hour"]
    assert float(after[best]["rank_usd_per_hour"]) > float(before[0]["rank_usd_per_hour"])
    assert after[best]["standby_rtt_far_ms"] > after[best]["standby_rtt_ms"] > 20
