"""What the doctor finds: on a world that is well, and on one in which one thing at a time is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from common import auth
from common.adapters.s3 import S3
from common.domain.account import Role
from common.ports import App
from common.topology import FUNCTIONS, SCHEDULES
from common.web import schedule
from common.workflows import doctor, users
from infra.demo.s3_server import S3Server
from tests.functions.conftest import Api, key_for
from tests.hand_cranked import World


@pytest.fixture
def well(world: World, admin: Api) -> World:
    """Every schedule has just run, and the marketplace announces."""
    for row in SCHEDULES:
        doctor.ran(world.app, row.name, world.now)
    assert admin.post("/markets/vast/webhook").status_code == 200
    return world


def found(world: World) -> dict[str, dict[str, Any]]:
    return {finding.check: finding.model_dump(mode="json") for finding in doctor.examine(world.app, world.now)}


def test_on_a_world_that_is_well_nothing_is_to_be_mended(well: World) -> None:
    findings = found(well)

    assert {finding["verdict"] for finding in findings.values()} == {"ok"}, findings
    assert {"store", "bucket", "market vast", "webhook of vast", "schedule reconcile"} <= set(findings)
    assert list(well.objects.list("doctor/")) == []


def test_a_lost_webhook_and_a_refused_key_name_their_mend(well: World) -> None:
    (subscription,) = well.market.subscriptions()
    well.market.unsubscribe(subscription.id)

    lost = found(well)["webhook of vast"]
    assert (lost["verdict"], lost["mend"]) == ("failed", "subscribe again with: dumont markets subscribe vast")

    well.now += timedelta(minutes=1)
    well.sim._api_key = "another"
    refused = found(well)["market vast"]
    assert refused["verdict"] == "failed"
    assert "VAST_API_KEY" in refused["mend"]


def test_a_bucket_that_cannot_be_reached_does_not_keep_the_rest_from_being_looked_at(well: World) -> None:
    nowhere = S3(endpoint="http://127.0.0.1:1", bucket="none", key_id="k" * 16, secret="s" * 16, region="us-east-1")
    well.app = dataclasses.replace(well.app, objects=nowhere)

    findings = found(well)
    nowhere.close()

    assert findings["bucket"]["verdict"] == "failed"
    assert "S3_KEY_ID" in findings["bucket"]["mend"]
    assert findings["store"]["verdict"] == "ok"


def test_a_schedule_that_stopped_is_noticed_after_three_periods(well: World) -> None:
    well.now += timedelta(minutes=4)

    finding = found(well)["schedule reconcile"]

    assert finding["verdict"] == "failed"
    assert "dumont deploy apply" in finding["mend"]


def test_a_job_notes_when_it_ran_and_how_it_ended(world: World) -> None:
    def breaks(_app: App) -> dict[str, Any]:
        raise RuntimeError("there is no such moon")

    assert posted(world, breaks).status_code == 500
    assert "no such moon" in found(world)["schedule reconcile"]["found"]

    assert posted(world, lambda _app: {"instances": 0}) == {"instances": 0}
    assert found(world)["schedule reconcile"]["verdict"] == "ok"


def posted(world: World, run: Callable[[App], dict[str, Any]]) -> Any:
    """The job's request as the local ticker makes it."""
    settings = world.app.settings.model_copy(update={"local_ticker": True})
    token = auth.scheduler_token("reconcile", secret=settings.jwt_secret, now=world.now)
    environ = EnvironBuilder(method="POST", headers={"Authorization": f"Bearer {token}"}).get_environ()
    return schedule.answered(dataclasses.replace(world.app, settings=settings), Request(environ), "reconcile", run)


def test_only_operators_may_ask_and_they_get_probes_to_make(well: World, admin: Api) -> None:
    stranger = Api(well, key_for(well, "other", Role.ADMIN))
    assert stranger.get("/doctor").status_code == 403

    said = admin.get("/doctor").get_json()

    probed = {probe["check"]: probe for probe in said["probes"]}
    assert {f"way to {row.name}" for row in FUNCTIONS if row.path != "/"} <= set(probed)
    assert probed["webhook round trip"]["expected"] == [404]
    assert {finding["verdict"] for finding in said["findings"]} == {"ok"}


def test_google_is_asked_with_the_functions_own_settings(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> None:
    world = World(tmp_path, s3_on_loopback, objects, with_google=True)
    users.appoint_operator(world.store, "acme")
    operator = Api(world, key_for(world, "acme", Role.ADMIN))

    def said() -> dict[str, Any]:
        findings = operator.get("/doctor").get_json()["findings"]
        return next(row for row in findings if row["check"] == "standbys at google")

    assert said()["verdict"] == "ok"
    assert "0 addresses of ours" in said()["found"]
    world.google._key_id = "another"
    assert said()["verdict"] == "failed"
    assert "dumont deploy apply" in said()["mend"]
    world.google._key_id, world.google._requests_per_minute = None, 0
    assert (said()["verdict"], said()["mend"]) == ("warning", "ask again in a minute")
    world.close()


def test_a_machine_without_a_record_is_an_alarm(well: World, admin: Api) -> None:
    id = well.provision()
    well.until(lambda: well.show(id).state == "running")
    for row in SCHEDULES:
        doctor.ran(well.app, row.name, well.now)
    (label,) = [doc.id for doc in well.store.query("rentals", [("settled", "==", False)])]
    record = well.store.get("rentals", label)
    assert record
    well.store.delete(record)

    (alarm,) = [row for row in admin.get("/doctor").get_json()["findings"] if row["verdict"] == "failed"]

    assert alarm["check"] == "machines"
    assert label in alarm["found"]
