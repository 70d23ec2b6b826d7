"""Process start to first 200, for each function's own ordinary request, as deployed: clean environment, Firestore.

Run: make bench-coldstart. The last line of stdout is JSON: {"functions": {name: ratio}, ...}; a ratio is the median of
RUNS beside the median of a bare functions-framework function with pydantic, taken in turns so that a busy machine slows
both.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from werkzeug.serving import make_server

from common.adapters.firestore import FirestoreStore
from common.topology import FUNCTIONS, Function
from infra.demo.story import Story
from infra.deploy import archive, runtime
from infra.deploy.local import Front, Quiet, command, function_env, public_keys
from infra.local.config import Local
from infra.local.ports import fresh_ports
from infra.local.up import _alive
from tests import firestore_emulator
from tests.ordinary import Call, Known, ordinary

RUNS = 7
FIRST_200_WITHIN_S = 60.0
DATABASE = "dumont"
BARE = """
import functions_framework
from pydantic import BaseModel


class Ping(BaseModel):
    word: str


@functions_framework.http
def bare(request):
    return Ping(word="pong").model_dump_json()
"""


def main() -> None:
    python = runtime.environment()
    with firestore_emulator.running() as emulator, tempfile.TemporaryDirectory() as folder:
        os.environ["FIRESTORE_EMULATOR_HOST"] = emulator
        with serving_instance(Path(folder)) as (local, label):
            source = runtime.unpack(archive.build(), Path(folder), python)
            (Path(folder) / "bare").mkdir()
            (Path(folder) / "bare" / "main.py").write_text(BARE)
            subprocess.run([str(python), "-m", "compileall", "-q", str(Path(folder) / "bare")], check=True)
            result = measure(python, source, Path(folder) / "bare", local, label)
    print(json.dumps(result))


@contextmanager
def serving_instance(folder: Path) -> Iterator[tuple[Local, str]]:
    """A store with a running instance in it, and nothing that calls the functions: its machines stand still."""
    store = f"firestore://bench-{uuid.uuid4().hex[:12]}/{DATABASE}"
    story = Story(folder, quiet=True, up_options=("--store", store))
    try:
        story.start()
        story.sign_in()
        story.deploy()
        label = story.writer()["label"]
        assert story.up
        story.up.kill()
        story.up.wait()
        os.kill(int((folder / "control.pid").read_text()), signal.SIGKILL)
        for row in story.rentals():
            with suppress(httpx.HTTPStatusError):  # one that lost the race may be gone
                story.in_world("POST", f"/rentals/{row['label']}/fault", json={"kind": "freeze"})
        yield Local(**json.loads((folder / "config.json").read_text())), label
    finally:
        story.end()
        world = int((folder / "world.pid").read_text())
        os.kill(world, signal.SIGTERM)
        while _alive(world):
            time.sleep(0.1)


def measure(python: Path, source: Path, bare: Path, local: Local, label: str) -> dict[str, Any]:
    """Each run takes the bare function and all others in turn."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    server = make_server("127.0.0.1", 0, Front({}, public_keys(key)), threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    settings = {name: value for name, value in local.control_env().items() if name not in times(local)}
    settings.pop("DUMONT_LOCAL_TICKER")
    env = {**{name: os.environ[name] for name in ("PATH", "HOME", "FIRESTORE_EMULATOR_HOST")}, **settings}
    taken: dict[str, list[float]] = {row.name: [] for row in FUNCTIONS} | {"bare": []}
    for _ in range(RUNS):
        bare_row = Function("bare", "functions", "/", 60, 512, 16, (), public=True)
        taken["bare"].append(first_200(python, bare_row, bare, env, Call("GET", "/", {})))
        for row in FUNCTIONS:
            call = ordinary(row, known(local, label, url, key))
            taken[row.name].append(first_200(python, row, source, env | function_env(row, url), call))
    server.shutdown()
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    for name, seconds in taken.items():
        print(f"{name:18} {medians[name] * 1000:6.0f} ms  of {[round(s * 1000) for s in seconds]}", file=sys.stderr)
    ratios = {name: round(median / medians["bare"], 2) for name, median in medians.items() if name != "bare"}
    return {"functions": ratios, "ms": {name: round(median * 1000) for name, median in medians.items()}}


def known(local: Local, label: str, url: str, key: rsa.RSAPrivateKey) -> Known:
    return Known(
        jwt_secret=local.jwt_secret,
        api_key=str(local.api_key),
        slack_signing_secret=local.slack_signing_secret,
        label=label,
        url=url,
        google_key=key,
        document=functools.partial(document, local),
    )


def times(local: Local) -> set[str]:
    """The demo's short waiting times: a deployed function has the production ones."""
    return {f"DUMONT_{name.upper()}" for name in local.timing}


def document(local: Local, collection: str, id: str) -> dict[str, Any]:
    """Read by another client, which also keeps the emulator warm."""
    project = local.store.removeprefix("firestore://").partition("/")[0]
    doc = FirestoreStore(project, DATABASE).get(collection, id)
    assert doc, f"{collection}/{id}"
    return doc.data


def first_200(python: Path, row: Function, source: Path, env: Mapping[str, str], call: Call) -> float:
    """Seconds from the start of the process to the end of the first answer, which must be a success."""
    port = fresh_ports(1)[0]
    full = {**env, "PORT": str(port), "WORKERS": "1", "THREADS": str(row.concurrency)}
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command(python, row, port), cwd=source, env=full, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(port, process, began)
            url = f"http://127.0.0.1:{port}{call.path}"
            answer = httpx.request(call.method, url, headers=call.headers, content=call.body, timeout=30)
            taken = time.perf_counter() - began
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        assert answer.is_success, f"{row.name}: {answer.status_code} {answer.text[:300]}\n{log.read()[-1500:]!r}"
    return taken


def wait_for(port: int, process: subprocess.Popen[bytes], began: float) -> None:
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the function's process ended"
        assert time.perf_counter() - began < FIRST_200_WITHIN_S, "it does not listen"
        time.sleep(0.002)


if __name__ == "__main__":
    main()
