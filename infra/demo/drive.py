"""A `dumont up` of one's own, driven from outside: as its user by REST, as its markets by the world's face."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from common import auth
from common.adapters.s3 import S3
from common.adapters.sqlite import SqliteStore
from common.ports import Deployment
from common.snapshots import engine

STEP_WITHIN_S = 120.0
ANSWER_WITHIN_S = 30.0
STOP_WITHIN_S = 40.0
POLL_S = 0.25


class CheckFailed(Exception):
    """The story is not true: what was expected and what was found."""


def check(held: bool, otherwise: str) -> None:
    """Raises `CheckFailed`."""
    if not held:
        raise CheckFailed(otherwise)


@dataclass
class Drive:
    """`folder` holds the state of the `dumont up` that `start` begins; `end` ends every process of it."""

    folder: Path
    quiet: bool = False
    up_options: tuple[str, ...] = ()
    """Of the `dumont up` that it starts."""
    with_google: bool = False
    """The world has a Google, so that the instance gets a standby."""
    facts: dict[str, str] = field(default_factory=dict)
    up: subprocess.Popen[str] | None = None
    api: httpx.Client = field(default_factory=httpx.Client)
    world: httpx.Client = field(default_factory=httpx.Client)
    instance: str = ""

    def start(self) -> str:
        """Raises `CheckFailed` with the end of its log if it does not come up."""
        google = "--google" if self.with_google else "--no-google"
        options = ["--json", "--port", "0", "--state", str(self.folder), google, *self.up_options]
        with open(self.folder / "up.log", "w") as log:
            self.up = subprocess.Popen(
                [sys.executable, "-m", "infra.local.up", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "DEMO_MODE": "true"},
            )
        assert self.up.stdout
        line = self.up.stdout.readline()
        if not line:
            raise CheckFailed(f"dumont up did not start: {(self.folder / 'up.log').read_text()[-500:]}")
        self.facts = json.loads(line)
        self.api = httpx.Client(base_url=self.facts["api"] + "/api/v1", timeout=30)
        self.world = httpx.Client(base_url=self.facts["world"], timeout=30)
        return f"the world and the control plane answer at {self.facts['api']}"

    def end(self) -> None:
        """SIGTERM to `up` ends every process it started."""
        if self.up and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.up.kill()
        if self.up and self.up.stdout:
            self.up.stdout.close()
        self.api.close()
        self.world.close()

    # --- as its user and as its markets

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        check(answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def post(self, path: str, body: dict[str, Any], status: int, headers: dict[str, str] | None = None) -> Any:
        """Every POST carries an Idempotency-Key, so that it may be repeated when the answer was lost."""
        key = {"Idempotency-Key": secrets.token_hex(8)}
        answer = self.call("POST", path, json=body, headers=key | (headers or {}))
        check(answer.status_code == status, f"POST {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def put(self, path: str, body: dict[str, Any], status: int) -> Any:
        answer = self.call("PUT", path, json=body, headers={"Idempotency-Key": secrets.token_hex(8)})
        check(answer.status_code == status, f"PUT {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return _patiently(self.api, method, path, **more)

    def shown(self) -> Any:
        return self.get(f"/instances/{self.instance}")

    def rentals(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.in_world("GET", "/rentals").json()
        return rows

    def in_world(self, method: str, path: str, **more: Any) -> httpx.Response:
        return _patiently(self.world, method, path, **more).raise_for_status()

    def writer(self) -> dict[str, Any]:
        serving = [r["label"] for r in self.shown()["rentals"] if r["state"] == "serving"]
        return next(row for row in self.rentals() if row["label"] in serving)

    def billing(self) -> list[str]:
        return [row["label"] for row in self.rentals() if Decimal(row["usd_per_hour"]) > 0]

    def load_gpu(self, label: str, percent: float) -> None:
        self.in_world("POST", f"/gpu/{label}", json={"percent": percent})

    def until(self, state: str, within_s: float = STEP_WITHIN_S) -> Any:
        self.wait(lambda: self.shown()["state"] in (state, "failed"), f"state {state}", within_s)
        shown = self.shown()
        check(shown["state"] == state, f"{shown['state']}: {shown['failure']}")
        return shown

    def wait(self, condition: Callable[[], bool], what: str, within_s: float = STEP_WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise CheckFailed(f"waited {within_s:.0f} s for {what}; it is {self.shown()['state']}")
            time.sleep(POLL_S)

    # --- its records, read beside the running control plane

    def records(self, collection: str) -> list[dict[str, Any]]:
        """The instance's own of a collection."""
        store = SqliteStore(str(self.folder / "store.db"))
        try:
            return [doc.data for doc in store.query(collection, [("instance_key", "==", self._key())])]
        finally:
            store.close()

    def _key(self) -> str:
        return str(self._documents("instances")[0]["account"]) + "." + self.instance

    def _documents(self, collection: str) -> list[dict[str, Any]]:
        id = "self" if collection == "deployment" else None
        store = SqliteStore(str(self.folder / "store.db"))
        try:
            found = [store.get(collection, id)] if id else store.query(collection, [("active", "==", True)])
            found = found or store.query(collection, [("active", "==", False)])
            return [doc.data for doc in found if doc]
        finally:
            store.close()

    def taken_at(self, manifest_key: str) -> datetime:
        """When the snapshot began, as its authenticated manifest says."""
        drawn = self._documents("deployment")[0]
        wrapping = Deployment(drawn["id"], bytes.fromhex(drawn["key"])).derive("wrap", "data keys")
        wrapped = self._documents("instances")[0]["data_key"]
        key = auth.unwrap(wrapped, self._key(), under=auth.wrapping_key(wrapping))
        objects = S3(
            endpoint=self.facts["s3"],
            bucket=self.facts["bucket"],
            key_id=self.facts["s3_access_key"],
            secret=self.facts["s3_secret_key"],
            region="us-east-1",
        )
        try:
            return datetime.fromisoformat(engine.load_manifest(objects, manifest_key, key).taken_at)
        finally:
            objects.close()

    def is_settled(self) -> bool:
        return all(rental["settled"] for rental in self.records("rentals"))


def _patiently(client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    """Asked again while nobody answers: a process that died is started again. Raises `httpx.TransportError` at last."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while True:
        try:
            return client.request(method, path, **more)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
