"""Attestation and the warm pool with real processes: the real agent measures, the real script starts it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from infra.deploy.doctor import command
from tests.e2e.test_up import start, started

__all__ = ["started"]
pytestmark = pytest.mark.e2e
doctor = typer.Typer()
doctor.command()(command)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOwner owner@home"


def client(facts: dict[str, Any]) -> httpx.Client:
    headers = {"Authorization": f"Bearer {facts['api_key']}"}
    return httpx.Client(base_url=f"{facts['api']}/api/v1", headers=headers, timeout=60)


def wait_for(found: Callable[[], Any], within_s: float = 90.0) -> Any:
    until = time.monotonic() + within_s
    while not (answer := found()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return answer


def running(api: httpx.Client, wish: dict[str, Any]) -> dict[str, Any]:
    accepted = api.post("/instances/provision", json=wish)
    assert accepted.status_code == 202, accepted.text
    path = f"/instances/{accepted.json()['operation']['instance_id']}"
    return wait_for(lambda: (shown := api.get(path).json())["state"] == "running" and shown)


def test_a_liar_is_found_by_the_real_agent_and_replaced(tmp_path: Path, started: list) -> None:
    facts = start(tmp_path, started)
    machines = f"{facts['world']}/machines"
    with client(facts) as api:
        best = api.get("/offers", params={"gpu": "RTX 5090"}).json()["items"][0]["machine_id"]
        assert httpx.post(f"{machines}/{best}", json={"wrong_gpu": "GeForce GTX 1060"}).status_code == 200
        shown = running(api, {"gpu": "RTX 5090", "strategy": "coldstart"})
        events = api.get(f"/instances/{shown['id']}/events").json()["items"]
        (lied,) = api.get("/machines/history").json()["items"]

    assert (lied["machine_id"], lied["outcomes"]) == (best, {"lied": 1})
    (won,) = [event["text"] for event in events if event["kind"] == "won"]
    assert won.endswith("as offered")
    assert httpx.post(f"{machines}/nobody", json={"small_disk": 1}).status_code == 404
    assert httpx.post(f"{machines}/{best}", json={"price": 1}).status_code == 422


def test_a_serverless_instance_runs_on_a_machine_of_the_pool_that_learns_its_owners_key(
    tmp_path: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SIZE": "1", "GPU": "H100 SXM", "BUDGET_USD_PER_HOUR": "9"}.items():
        monkeypatch.setenv(f"DUMONT_POOL_{name}", value)
    facts = start(tmp_path, started)
    with client(facts) as api:
        wait_for(lambda: api.get("/pool").json()["ready"] == 1)
        began = time.monotonic()
        shown = running(api, {"gpu": "H100 SXM", "strategy": "serverless", "ssh_public_key": KEY})
        took_s = time.monotonic() - began
    (rental,) = shown["rentals"]
    rows = httpx.get(f"{facts['world']}/rentals").json()
    workspace = next(Path(row["workspace"]) for row in rows if row["label"] == rental["label"])

    assert "-pool-" in rental["label"]
    assert took_s < 10
    assert (workspace.parent / "home/.ssh/authorized_keys").read_text() == f"{KEY}\n"


def test_the_doctor_finds_a_running_deployment_well_and_names_what_broke(
    tmp_path: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = start(tmp_path, started)
    monkeypatch.setenv("DUMONT_API_URL", facts["api"])
    monkeypatch.setenv("DUMONT_API_KEY", facts["api_key"])

    def examined(expected: int) -> dict[str, dict[str, Any]]:
        result = CliRunner().invoke(doctor, ["--json"])
        found = {row["check"]: row for row in json.loads(result.stdout)["findings"]}
        return found if result.exit_code == expected else {}

    well = wait_for(lambda: examined(0))
    # between two listings of the ticker there may be no turn for a third; rclone knows one key alone
    assert {name for name, row in well.items() if row["verdict"] != "ok"} <= {"machines", "storage access"}
    assert {"clock", "webhook round trip", "way to heartbeat", "bucket", "market tensordock"} <= set(well)

    vast = httpx.Client(base_url=facts["vast"], headers={"Authorization": f"Bearer {facts['vast_api_key']}"})
    with vast:
        (hook,) = vast.get("/api/v0/webhooks/").json()["webhooks"]
        vast.delete(f"/api/v0/webhooks/{hook['id']}/")
    assert examined(1)["webhook of vast"]["verdict"] == "failed"
