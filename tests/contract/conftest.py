"""The store on each backend: SQLite, Google's own Firestore emulator, and the memory of the simulation."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from common.adapters.firestore import FirestoreStore
from common.adapters.sqlite import SqliteStore
from common.ports import Store
from infra.local.ports import fresh_ports
from tests import firestore_emulator
from tests.simulation.store import MemoryStore


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
    """`host:port` of Google's emulator, started for this run."""
    try:
        with firestore_emulator.running() as address:
            yield address
    except firestore_emulator.NoEmulator as missing:
        _give_up(str(missing))


@pytest.fixture
def closed_port() -> int:
    return fresh_ports(1)[0]


def _give_up(reason: str) -> NoReturn:
    """On CI both backends are proven or the run fails; elsewhere the report names what was left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"contract tests on Firestore: {reason}")
    pytest.skip(f"contract tests on Firestore: {reason}")


@pytest.fixture
def nobody_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Google's client has calls of its own that know no endpoint, one of them on a thread where its failure is lost."""
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def noted(host: Any, *args: Any, **more: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", "::1"):
            asked.append(host)
        return look_up(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    yield
    assert asked == []
