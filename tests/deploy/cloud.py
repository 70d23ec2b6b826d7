"""A deployer of an empty project at a simulated Google, over loopback, on a clock that only waiting turns."""

from __future__ import annotations

import copy
import functools
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.auth.credentials import Credentials
from werkzeug.serving import WSGIRequestHandler, make_server

from common.adapters.sqlite import SqliteStore
from common.adapters.vast import Vast
from common.config import Settings
from common.domain.liveness import Heard
from common.ports import App, Deployment
from infra.demo.gcp import google_sim
from infra.demo.gcp.sim import GoogleSim
from infra.demo.http_face import HttpFace
from infra.demo.vast import VastSim
from infra.deploy import archive, make
from infra.deploy.deployer import Deployer
from infra.deploy.google import HOSTS, Google
from infra.deploy.resource import Step
from infra.gpu_host.bundle import Bundle
from tests.hand_cranked import SimTransport

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROJECT, REGION = "acme-gpus", "europe-west1"


class Killed(BaseException):
    """What a `kill -9` is to the deployer: nothing of it runs any more."""


@dataclass
class Calls:
    """Of one process, to whomever: it can die before any of them."""

    kill_at: int = 0
    """0 = never."""
    before: Callable[[], None] = lambda: None
    """Called before each of them."""
    made: int = 0

    def one(self) -> None:
        self.before()
        self.made += 1
        if self.made == self.kill_at:
            raise Killed


class Keys(Credentials):
    """Every call to Google passes its credentials."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def refresh(self, request: Any) -> None:
        self.token = "test-token"

    def before_request(self, request: Any, method: str, url: str, headers: Any) -> None:
        self._calls.one()
        headers["authorization"] = "Bearer test-token"


class MarketTransport(SimTransport):
    def __init__(self, cloud: Cloud) -> None:
        super().__init__(cloud, "vast")
        self._calls = cloud.calls

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._calls.one()
        return super().handle_request(request)


class Objects:
    """An object store in memory, with the calls that a deployer makes."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.stored: dict[str, bytes] = {}
        self.rules: list[dict[str, Any]] = []
        self.writes = 0

    def list(self, prefix: str) -> Iterator[Any]:
        from common.ports import Stored

        self.calls.one()
        return iter(
            [Stored(key, len(data), None) for key, data in sorted(self.stored.items()) if key.startswith(prefix)]
        )

    def put_file(self, key: str, path: str) -> None:
        self.calls.one()
        self.writes += 1
        self.stored[key] = Path(path).read_bytes()

    def delete(self, keys: Sequence[str]) -> None:
        self.calls.one()
        for key in keys:
            self.stored.pop(key, None)

    def lifecycle_rules(self) -> list[dict[str, Any]]:
        self.calls.one()
        return self.rules

    def set_lifecycle_rules(self, rules: Sequence[dict[str, Any]]) -> None:
        self.calls.one()
        self.writes += 1
        self.rules = [*rules]


@dataclass
class Cloud:
    """The world of one deployment, and deployers of it that may be killed."""

    sim: GoogleSim
    url: str
    folder: Path
    parts: make.Parts
    now: datetime = START
    objects: Objects = field(default_factory=Objects)

    def __post_init__(self) -> None:
        self.vast = VastSim(rng=random.Random(1), api_key="vast-key")
        self.store = SqliteStore(str(self.folder / "store.db"))
        self.calls = Calls()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def deployer(self, kill_at: int = 0, before: Callable[[], None] = lambda: None) -> Deployer:
        """A new process: nothing is known but what Google says. `kill_at` = before which call it dies; 0 = never."""
        self.calls = self.objects.calls = Calls(kill_at, before)
        google = self.google()
        return make.deployer(google, self.parts, functools.cache(lambda: self.app(google)), lambda: self.objects)

    def google(self) -> Google:
        """Google's own clients go over loopback, ours straight into the simulator: the same requests."""
        hosts = dict.fromkeys(HOSTS, self.url)
        return Google(PROJECT, REGION, Keys(self.calls), self.wait, hosts=hosts, transport=SimTransport(self))

    def app(self, google: Google) -> App:
        env = {
            **make.target(self.parts, google, ()).env,
            **self.parts.secret_values,
            "JWT_SECRET": "0" * 32,
        }
        market = Vast("vast-key", base_url="http://vast.sim", transport=MarketTransport(self), wait=self.wait)
        return App(
            settings=Settings.from_env(env),
            store=self.store,
            markets={"vast": market},
            objects=self.objects,
            clock=lambda: self.now,
            ids=lambda: "id",
            deployment=lambda: Deployment("d", b"k"),
            log=lambda *_args, **_fields: None,
            heard=Heard("id", 180.0),
        )

    def apply(self, kill_at: int = 0, before: Callable[[], None] = lambda: None) -> list[Step]:
        """The changes that were made."""
        done: list[Step] = []
        self.deployer(kill_at, before).apply(done.append)
        return done

    def plan(self) -> list[Step]:
        return self.deployer().plan()

    def destroy(self, *, with_data: bool, before: Callable[[], None] = lambda: None) -> list[Step]:
        """What was deleted."""
        done: list[Step] = []
        self.deployer(before=before).destroy(done.append, with_data=with_data)
        return done

    def kept(self) -> Callable[[], None]:
        """Remember how everything is now, with what is under way; the answer puts it back."""
        tables = {name: [*_kept(table)] for name, table in self.sim.state.items()}
        vast, now = self.vast.to_json(), self.now
        stored, rules = dict(self.objects.stored), list(self.objects.rules)
        enabled, records = dict(self.sim.enabled), self._records()
        operations = {name: replace(slow) for name, slow in self.sim.operations.items()}

        def put_back() -> None:
            self.now, self.sim.operations = now, {name: replace(slow) for name, slow in operations.items()}
            for name, table in self.sim.state.items():  # the simulator's own functions hold on to the tables
                table.clear()
                table.update((key, _put_back(row, content)) for key, row, content in tables.get(name, ()))
            self.vast = VastSim.from_json(vast, rng=random.Random(1))
            self.objects.stored, self.objects.rules = dict(stored), list(rules)
            self.sim.enabled.clear()
            self.sim.enabled.update(enabled)
            self._put_records_back(records)

        return put_back

    def _records(self) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "store.db")) as file:
            return file.execute("SELECT * FROM docs").fetchall()

    def _put_records_back(self, records: list[tuple[Any, ...]]) -> None:
        with closing(sqlite3.connect(self.folder / "store.db")) as file, file:
            file.execute("DELETE FROM docs")
            for row in records:
                file.execute(f"INSERT INTO docs VALUES ({','.join('?' * len(row))})", row)

    def having(self, **parts: Any) -> None:
        """From now on the deployment is made of these."""
        self.parts = replace(self.parts, **parts)

    def subscription(self) -> str | None:
        """Where the marketplace sends its events, by our own record."""
        doc = self.store.get("subscriptions", "vast")
        return str(doc.data["url"]) if doc else None

    def state(self) -> dict[str, Any]:
        """Everything that Google keeps, without what it draws by chance or by time."""
        tables = {name: _plain(table) for name, table in self.sim.state.items() if table}
        tables["indexes"] = sorted(tables.get("indexes", {}).values(), key=repr)  # their names are drawn
        if drawn := tables.get("secrets", {}).get("JWT_SECRET"):
            drawn["versions"] = len(drawn["versions"])
        return tables | {
            "enabled": sorted(self.sim.enabled),
            "bundle": [*self.objects.stored],
            "rules": self.objects.rules,
            "announces": sorted(row.url for row in self.vast.webhooks.rows.values()),
        }


def _kept(table: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, row, its content now)."""
    return ((key, row, copy.deepcopy(row)) for key, row in table.items())


def _put_back(row: Any, content: Any) -> Any:
    """The same row, for what is under way holds on to it too."""
    if not isinstance(row, dict):
        return copy.deepcopy(content)
    row.clear()
    row.update(copy.deepcopy(content))
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in ("made", "etag", "name")}
    if isinstance(value, list):
        return sorted((_plain(item) for item in value), key=repr)
    return value


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave in one piece: no waiting for the other side's acknowledgement

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Silence."""


class Served:
    """One loopback port for whichever project is being simulated."""

    def __init__(self) -> None:
        self.cloud: Cloud | None = None
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        cloud = self.cloud
        assert cloud
        face = HttpFace(cloud.sim, clock=lambda: cloud.now, lock=self._lock)
        return face(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.close()


@pytest.fixture(scope="session")
def built() -> archive.Archive:
    return archive.build()


ENV = {
    "VAST_API_KEY": "vast-key",
    "STORAGE_PROVIDER": "b2",
    "B2_KEY_ID": "key-id",
    "B2_APPLICATION_KEY": "application-key",
    "B2_BUCKET": "acme-dumont",
    "B2_ENDPOINT": "https://s3.eu-central-003.backblazeb2.com",
    "DUMONT_IDLE_FOR_S": "180",
    "HOME": "/root",
}


@pytest.fixture
def cloud(served: Served, built: archive.Archive, tmp_path: Path) -> Cloud:
    return new_cloud(served, built, tmp_path)


def new_cloud(served: Served, built: archive.Archive, folder: Path, *, operation_s: float = 12) -> Cloud:
    bundle = folder / "bundle.tgz"
    bundle.write_bytes(b"bundle")
    parts = make.Parts(built, Bundle(str(bundle), "ab" * 32, "2.36", 6), ENV)
    served.cloud = Cloud(google_sim(PROJECT, REGION, operation_s=operation_s), served.url, folder, parts)
    return served.cloud
