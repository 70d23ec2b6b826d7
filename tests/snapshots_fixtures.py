"""A store on loopback, and what tests of snapshots say often: take, verify, restore, and what a tree is."""

# Names here are bytes, which a Path cannot hold.
# ruff: noqa: PTH115, PTH118

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.adapters.s3 import S3
from common.snapshots import engine
from common.snapshots.mapped import let_stores_be_told
from common.snapshots.state import TICK_NS
from infra.demo.s3_server import S3Server, s3_server

KEY = b"instance key of thirty-two bytes"
PREFIX = "snapshots/alice.box/"
Previous = engine.Manifest | Callable[[], engine.Manifest] | None
TAKEN_AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="session")
def s3_on_loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def objects(s3_on_loopback: S3Server) -> Iterator[S3]:
    store = s3(s3_on_loopback)
    yield store
    store.delete([stored.key for stored in store.list("")])
    store.close()


@pytest.fixture
def box(s3_on_loopback: S3Server, objects: S3, tmp_path: Path) -> Box:
    (tmp_path / "workspace").mkdir()
    return Box(tmp_path, endpoint(s3_on_loopback), objects)


def s3(server: S3Server, **other: str) -> S3:
    words = {"endpoint": server.endpoint, "bucket": server.bucket, "region": "us-east-1"}
    return S3(**{**words, "key_id": server.access_key, "secret": server.secret_key, **other})


def endpoint(server: S3Server) -> engine.Endpoint:
    return engine.Endpoint(server.endpoint, server.bucket, server.access_key, server.secret_key)


@dataclass(frozen=True)
class Box:
    """A workspace, its agent's state directory, a second machine to restore on, and the bucket."""

    base: Path
    endpoint: engine.Endpoint
    objects: S3

    @property
    def root(self) -> Path:
        return self.base / "workspace"

    @property
    def copy(self) -> Path:
        return self.base / "copy"

    def take(self, seq: int = 1, previous: Previous = None, **other: Any) -> engine.Taken:
        words = {"root": self.root, "state_dir": self.base / "state", "endpoint": self.endpoint, **other}
        return engine.take(
            prefix=PREFIX,
            instance_key=KEY,
            epoch=1,
            seq=seq,
            taken_at=TAKEN_AT,
            previous=previous,
            clock=time.monotonic,
            **words,
        )

    def restore(self, key: str, **other: Any) -> engine.Restored:
        words = {"root": self.copy, "state_dir": self.base / "other state", "instance_key": KEY, **other}
        return engine.restore(key, prefix=PREFIX, clock=time.monotonic, **{"endpoint": self.endpoint, **words})

    def verify(self, key: str, proven: tuple[str, ...] = (), objects: Any = None) -> engine.Verified:
        return engine.verify(objects or self.objects, key, prefix=PREFIX, instance_key=KEY, proven=lambda: proven)

    def packs(self) -> list[str]:
        return [stored.key for stored in self.objects.list(f"{PREFIX}packs/")]

    def manifests(self) -> list[str]:
        return [stored.key for stored in self.objects.list(f"{PREFIX}manifests/")]


class WithoutMd5:
    """A store that gives no checksum, as for multipart uploads."""

    def __init__(self, objects: S3) -> None:
        self.get, self.read, self._list = objects.get, objects.read, objects.list

    def list(self, prefix: str) -> Iterator[Any]:
        return (replace(stored, md5=None) for stored in self._list(prefix))


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Memory that is the file, whose first store its time has told. Skips the test on a disk that tells none."""
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        let_stores_be_told(path.parent)
        before_ns = path.stat().st_mtime_ns
        time.sleep(2 * TICK_NS / 1e9)
        memory[:4] = b"told"
        time.sleep(2 * TICK_NS / 1e9)
        if path.stat().st_mtime_ns == before_ns:
            pytest.skip("the file system tells no store to mapped memory")
        yield memory


def tree(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """All that a snapshot promises of a tree: kinds, modes, times, contents, links, and which names are one file."""
    top = bytes(root)
    found: dict[bytes, tuple[Any, ...]] = {b"": _facts(top)}
    names: dict[int, list[bytes]] = {}
    for folder, dirs, files in os.walk(top):
        for name in dirs + files:
            path = os.path.join(folder, name)
            found[path[len(top) + 1 :]] = _facts(path)
            if stat.S_ISREG(os.lstat(path).st_mode):
                names.setdefault(os.lstat(path).st_ino, []).append(path[len(top) + 1 :])
    for together in names.values():
        for path in together:
            found[path] += (sorted(together),)
    return found


def _facts(path: bytes) -> tuple[Any, ...]:
    status = os.lstat(path)
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    if kind == stat.S_IFLNK:
        return (kind, status.st_mtime_ns, os.readlink(path))
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            return (kind, mode, status.st_mtime_ns, file.read())
    return (kind, mode, status.st_mtime_ns)
