"""The store on each backend: SQLite, Google's own Firestore emulator, and the memory of the simulation."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from common.adapters.firestore import FirestoreStore
from common.adapters.sqlite import SqliteStore
from common.ports import Store
from tests.simulation.store import MemoryStore

EMULATOR_START_S = 60.0
JAR = Path("platform/cloud-firestore-emulator/cloud-firestore-emulator.jar")
SYSTEM_SDK = Path("/usr/lib/google-cloud-sdk")
JAVA_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"


@pytest.fixture(params=["sqlite", "memory", pytest.param("firestore", marks=pytest.mark.firestore)])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store."""
    opened: Store = request.getfixturevalue(f"{request.param}_store")
    return opened


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store.db")
    yield opened
    opened.close()


@pytest.fixture
def memory_store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def firestore_store(emulator: str, monkeypatch: pytest.MonkeyPatch) -> FirestoreStore:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator)
    return FirestoreStore(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """`host:port` of Google's emulator, started for this run and killed with its whole process group."""
    jar, java = _jar(), shutil.which("java")
    if jar is None or java is None:
        _give_up(f"no {'java' if jar else 'Firestore emulator jar (set FIRESTORE_EMULATOR_JAR)'} on this machine")
    port = _free_port()
    command = [java, *JAVA_OPTIONS, "-cp", str(jar), MAIN_CLASS, "start", "--host=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
    )
    try:
        _wait_until(lambda: _answers(port), process)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def closed_port() -> int:
    return _free_port()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _jar() -> Path | None:
    gcloud = shutil.which("gcloud")
    places = [Path(gcloud).resolve().parents[1] / JAR] if gcloud else []
    named = os.environ.get("FIRESTORE_EMULATOR_JAR")
    places = [Path(named)] if named else [*places, SYSTEM_SDK / JAR]
    return next((place for place in places if place.is_file()), None)


def _give_up(reason: str) -> NoReturn:
    """On CI both backends are proven or the run fails; elsewhere the report names what was left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"contract tests on Firestore: {reason}")
    pytest.skip(f"contract tests on Firestore: {reason}")


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + EMULATOR_START_S
    while not ready():
        assert process.poll() is None, f"the emulator ended with {process.returncode}"
        assert time.monotonic() < deadline, f"the emulator was not up after {EMULATOR_START_S} s"
        time.sleep(0.1)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
