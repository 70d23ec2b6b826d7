"""The vendor's own unmodified `vastai` client drives the simulator over loopback."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from infra.demo.http_face import HttpFace
from infra.demo.vast import Request, VastSim

pytestmark = [pytest.mark.vendor, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-vendor"


@pytest.fixture(scope="session")
def vastai() -> str:
    """The client in a virtual environment of its own: its pins are not ours."""
    program = VENV / "bin/vastai"
    if not (VENV / ".ready").exists():
        pytest.skip("the vendor's client is not installed: make vendor")
    return str(program)


class Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Silence."""


class Client:
    def __init__(self, program: str, url: str, home: Path) -> None:
        self._program = program
        keep = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
        self._env = keep | {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "XDG_CACHE_HOME": str(home),
            "VAST_URL": url,
            "VAST_API_KEY": "sim-key",
            "VASTAI_NO_UPDATE_CHECK": "1",
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *words, "--raw"], env=self._env, capture_output=True, text=True, timeout=60
        )

    def json(self, *words: str) -> Any:
        result = self.run(*words)
        return json.loads(result.stdout)


class Served:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.sim = VastSim(rng=random.Random(1), api_key="sim-key", intervals={})
        face = HttpFace(self.sim, clock=lambda: self.now, lock=threading.Lock())
        self.server = make_server("127.0.0.1", 0, face, threaded=True, request_handler=Quiet)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def rent(self, count: int) -> None:
        headers = {"Authorization": "Bearer sim-key"}
        for n in range(count):
            body = json.dumps({"label": f"extra-{n}", "image": "i"}).encode()
            self.sim.handle(Request("PUT", f"/api/v0/asks/{7000 + n}/", {}, headers, body), self.now)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def test_the_vendors_client_lives_a_whole_life_with_the_simulator(vastai: str, served: Served, tmp_path: Path) -> None:
    client = Client(vastai, served.url, tmp_path)
    offers = client.json("search", "offers", "gpu_name=H100_SXM num_gpus=1 dph<=4")
    assert offers
    assert {offer["gpu_name"] for offer in offers} == {"H100 SXM"}

    ask = str(offers[0]["id"])
    created = client.json("create", "instance", ask, "--image", "i", "--disk", "64", "--label", "one", "--ssh")
    assert created["success"] is True
    id = str(created["new_contract"])
    again = client.run("create", "instance", ask, "--image", "i", "--disk", "64")
    assert "no_such_ask" in again.stdout + again.stderr

    served.now += timedelta(seconds=30)
    shown = client.json("show", "instance", id)
    assert (shown["actual_status"], shown["label"]) == ("running", "one")

    served.rent(30)
    listed = client.json("show", "instances")
    rows = listed["instances"] if isinstance(listed, dict) else listed
    assert len(rows) == len(served.sim.contracts()) > 25

    client.run("stop", "instance", id)
    assert client.json("show", "instance", id)["intended_status"] == "stopped"
    served.sim.start_refused = True
    refused = client.run("start", "instance", id)
    assert "unavailable" in (refused.stdout + refused.stderr).lower()
    client.run("label", "instance", id, "two")
    assert client.json("show", "instance", id)["label"] == "two"

    client.run("destroy", "instance", id, "-y")
    assert str(id) not in {str(contract.id) for contract in served.sim.contracts()}
    gone = client.run("destroy", "instance", id, "-y")
    assert json.loads(gone.stderr)["status_code"] == 404
