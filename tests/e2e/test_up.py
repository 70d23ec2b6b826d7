"""`dumont up`: one line of JSON, one supervisor per directory, attaches to a living world, ends all it began."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.up import _alive

pytestmark = pytest.mark.e2e
UP = [sys.executable, "-m", "infra.local.up", "--no-google", "--json", "--port", "0", "--state"]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    ups: list[subprocess.Popen[str]] = []
    yield ups
    for up in ups:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=40)


def start(state: Path, started: list[subprocess.Popen[str]]) -> dict[str, Any]:
    env = {**os.environ, "DEMO_MODE": "true"}
    up = subprocess.Popen([*UP, str(state)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    started.append(up)
    assert up.stdout
    return json.loads(up.stdout.readline())


def pid_of(state: Path, program: str) -> int:
    return int((state / f"{program}.pid").read_text())


def test_up_tells_everything_a_program_needs_to_drive_it(tmp_path: Path, started: list) -> None:
    facts = start(tmp_path, started)

    assert set(facts) == {
        *("api", "vast", "gcp", "s3", "s3_access_key", "s3_secret_key", "bucket"),
        *("user", "password", "api_key", "vast_api_key", "tensordock", "tensordock_api_key", "world"),
        *("slack_url", "slack_signing_secret", "slack_response_url"),
    }
    headers = {"Authorization": f"Bearer {facts['api_key']}"}
    assert httpx.get(f"{facts['api']}/api/v1/instances", headers=headers).json() == {"items": [], "next_cursor": None}
    assert httpx.get(f"{facts['world']}/rentals").json() == []
    faults = {"kill", "cut", "freeze", "thaw", "notice", "outbid", "lose"}
    assert set(httpx.get(f"{facts['world']}/faults").json()) == faults
    assert httpx.post(f"{facts['world']}/rentals/nobody/fault", json={"kind": "lose"}).status_code == 404
    assert httpx.post(f"{facts['world']}/rentals/nobody/fault", json={"kind": "magic"}).status_code == 422


def test_a_second_up_on_the_same_directory_refuses_with_a_sentence(tmp_path: Path, started: list) -> None:
    start(tmp_path, started)

    second = subprocess.run([*UP, str(tmp_path)], capture_output=True, text=True, timeout=60)

    assert second.returncode == 2
    assert "another dumont up runs on" in second.stderr
    assert second.stdout == ""


def test_after_a_kill_of_the_supervisor_a_new_one_attaches_and_sigterm_ends_everything(
    tmp_path: Path, started: list
) -> None:
    first = start(tmp_path, started)
    world = pid_of(tmp_path, "world")
    started[0].kill()
    started[0].wait()

    again = start(tmp_path, started)

    assert again == first
    assert pid_of(tmp_path, "world") == world
    pids = [world, pid_of(tmp_path, "control")]
    started[1].send_signal(signal.SIGTERM)
    started[1].wait(40)
    assert not any(_alive(pid) for pid in pids)


def test_a_program_that_is_killed_is_started_again(tmp_path: Path, started: list) -> None:
    facts = start(tmp_path, started)
    os.kill(pid_of(tmp_path, "control"), signal.SIGKILL)

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{facts['api']}/healthz").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)

    assert httpx.get(f"{facts['api']}/healthz").json() == {"ok": True}


def test_the_market_of_both_marketplaces_is_recorded_as_soon_as_it_is_up(tmp_path: Path, started: list) -> None:
    facts = start(tmp_path, started)
    headers = {"Authorization": f"Bearer {facts['api_key']}"}
    ends, seen = time.monotonic() + 60, set()
    while seen != {"vast", "tensordock"}:
        assert time.monotonic() < ends, seen
        time.sleep(0.5)
        found = httpx.get(f"{facts['api']}/api/v1/spot/market", headers=headers).json()
        seen = {row["provider"] for row in found["items"]}

    assert float(found["rent_now"]["now"]["usd_per_hour"]) > 0
