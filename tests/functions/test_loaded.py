"""Which heavy modules each function has loaded once its first ordinary request is answered, as deployed."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from werkzeug.serving import make_server

from common.adapters.firestore import FirestoreStore
from common.domain.account import Role
from common.domain.instance import State
from common.errors import StoreUnavailable
from common.ports import Store
from common.topology import FUNCTIONS, Function
from infra.demo.gcp.compute import ComputeSim
from infra.demo.http_face import HttpFace
from infra.demo.s3_server import S3Server
from infra.deploy import archive, runtime
from infra.deploy.local import Quiet, function_env, public_keys
from tests.contract.conftest import emulator
from tests.functions.conftest import key_for
from tests.hand_cranked import SLACK_SECRET, World
from tests.ordinary import Known, ordinary
from tests.snapshots_fixtures import s3, s3_on_loopback

__all__ = ["emulator", "s3_on_loopback"]
pytestmark = [pytest.mark.firestore, pytest.mark.e2e]
DATABASE = "dumont"
STORE = "google.cloud.firestore"
"""With grpc and requests, which it loads itself."""
TOKENS = "jwt"
"""With cryptography, which it loads itself."""
MARKET = "httpx"
"""With zstandard, which it loads itself where it finds it."""
ENGINE = "common.snapshots.verify"
API = "common.web.rest"
GOOGLE = "google.cloud.compute_v1"
"""Only who lists the standbys' machines, or changes one."""
HEAVY = (
    *(STORE, TOKENS, MARKET, ENGINE, API),
    *(GOOGLE, "google.cloud.functions_v2", "google.cloud.scheduler_v1", "boto3", "sqlite3"),
    *("argon2", "rich", "slack_sdk", "numpy", "lz4", "blosc", "blake3", "common.chatops.render"),
    "iptocc",
)
LOADED = {
    "api": {STORE, API},
    "provision": {STORE, TOKENS},
    "heartbeat": {STORE, TOKENS},
    "failover": {STORE, TOKENS, MARKET},
    "slack": {STORE, "common.chatops.render"},
    "metrics": {STORE},
    "reconcile": {STORE, TOKENS, MARKET, GOOGLE},
    "hibernate_idle": {STORE, TOKENS},
    "refill_warm_pool": {STORE, TOKENS},
    "poll_prices": {STORE, TOKENS, MARKET},
    "prune_snapshots": {STORE, TOKENS},
    "drill_snapshots": {STORE, TOKENS},
}
EMULATOR_TRIES = 5
CHILD = """
import json, sys, time
import functions_framework
asked = json.load(sys.stdin)
app = functions_framework.create_app(asked["name"], "main.py", "http")
answer = app.test_client().open(asked["path"], method=asked["method"], headers=asked["headers"], data=asked["body"])
loaded = [name for name in asked["names"] if name in sys.modules]
print(json.dumps([answer.status_code, answer.get_data(as_text=True), loaded, time.process_time()]))
"""


@dataclass
class Deployed:
    source: Path
    python: Path
    env: dict[str, str]
    google: dict[str, str]
    """The settings of functions that may rent standbys."""
    known: Known

    def first_request(self, row: Function) -> tuple[int, str, set[str], float]:
        """(status, text, heavy modules, CPU seconds) of a new process."""
        call = ordinary(row, self.known)
        asked = {"name": row.name, "path": call.path, "method": call.method, "headers": dict(call.headers)}
        ran = subprocess.run(
            [str(self.python), "-c", CHILD],
            input=json.dumps(asked | {"body": call.body.decode(), "names": HEAVY}),
            env=self.env | function_env(row, self.known.url) | (self.google if "standby" in row.rights else {}),
            cwd=self.source,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        status, text, loaded, cpu_s = json.loads(ran.stdout.splitlines()[-1])
        return status, text + ran.stderr[-2000:], set(loaded), cpu_s


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, emulator: str, s3_on_loopback: S3Server) -> Iterator[Deployed]:
    """A running instance in Firestore, its marketplace on loopback, and the archive beside its own environment."""
    folder, objects = tmp_path_factory.mktemp("loaded"), s3(s3_on_loopback)
    world = World(folder, s3_on_loopback, objects, now=datetime.now(UTC), next_job_at=datetime.now(UTC))
    id = world.provision(standby=False)  # else every request would rent it one first
    world.until(lambda: world.show(id).state is State.RUNNING)
    api_key, label = key_for(world, "acme", Role.ADMIN), str(world.record(id).writer)
    project = f"loaded-{uuid.uuid4().hex[:12]}"
    os.environ["FIRESTORE_EMULATOR_HOST"] = emulator
    store = FirestoreStore(project, DATABASE)
    copy(world.folder / "store.db", world.store, store)

    def document(collection: str, id: str) -> dict[str, Any]:
        doc = store.get(collection, id)
        assert doc, f"{collection}/{id}"
        return doc.data

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    server = make_server("127.0.0.1", 0, Around(world, public_keys(key)), threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    python = runtime.environment()
    env = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "FIRESTORE_EMULATOR_HOST")},
        "DUMONT_STORE": f"firestore://{project}/{DATABASE}",
        "DUMONT_URL": url,
        "JWT_SECRET": world.app.settings.jwt_secret,
        "VAST_API_KEY": "sim-key",
        "VAST_URL": url,
        "STORAGE_PROVIDER": "s3",
        "S3_ENDPOINT": s3_on_loopback.endpoint,
        "S3_BUCKET": s3_on_loopback.bucket,
        "S3_KEY_ID": s3_on_loopback.access_key,
        "S3_APPLICATION_KEY": s3_on_loopback.secret_key,
        "DUMONT_STORAGE_ACCESS": "shared",
        "SLACK_BOT_TOKEN": "xoxb-sim",
        "SLACK_SIGNING_SECRET": SLACK_SECRET,
    }
    known = Known(world.app.settings.jwt_secret, api_key, SLACK_SECRET, label, url, key, document)
    google = {"GCP_CREDENTIALS": "anonymous", "GCP_PROJECT": "demo-project", "GCP_URL": url}
    yield Deployed(runtime.unpack(archive.build(), folder, python), python, env, google, known)
    os.environ.pop("FIRESTORE_EMULATOR_HOST")
    server.shutdown()
    server.server_close()
    world.close()
    objects.close()


def copy(file: Path, source: Store, target: Store) -> None:
    with sqlite3.connect(file) as db:
        names = db.execute("SELECT collection, id FROM docs").fetchall()
    for collection, id in names:
        doc = source.get(collection, id)
        assert doc
        for left in reversed(range(EMULATOR_TRIES)):
            try:
                target.put(collection, id, doc.data)
                break
            except StoreUnavailable:  # an emulator that has just been started is slow
                if not left:
                    raise


class Around:
    """Google's public keys and machines, and the marketplace; hints of functions to each other lead nowhere."""

    def __init__(self, world: World, keys: bytes) -> None:
        clock, compute = lambda: datetime.now(UTC), ComputeSim(rng=random.Random(1))
        self._compute = HttpFace(compute, clock=clock, lock=threading.Lock())
        self._market = HttpFace(world.sim, clock=lambda: datetime.now(UTC), lock=threading.Lock())
        self._keys = keys

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path.startswith("/api/"):
            return self._market(environ, start_response)
        if path.startswith("/compute/"):
            return self._compute(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "max-age=3600")])
        return [self._keys if path.startswith("/google/") else b"{}"]


def test_every_function_is_pinned() -> None:
    assert set(LOADED) == {row.name for row in FUNCTIONS}
    assert [name for name, loaded in LOADED.items() if GOOGLE in loaded] == ["reconcile"]


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)
def test_after_its_ordinary_request_a_function_has_loaded_what_is_pinned(deployed: Deployed, row: Function) -> None:
    status, text, loaded, cpu_s = deployed.first_request(row)
    print(f"{row.name}: {cpu_s:.3f} s of CPU")

    assert 200 <= status < 300, text
    assert loaded == LOADED[row.name]
