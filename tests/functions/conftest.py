"""The API over a hand-cranked world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from common import auth
from common.adapters.s3 import S3
from common.domain.account import Caller, Role
from common.web import rest
from common.workflows import users
from infra.demo.s3_server import S3Server
from tests.hand_cranked import World
from tests.snapshots_fixtures import objects, s3_on_loopback

__all__ = ["objects", "s3_on_loopback"]
PASSWORD = "correct horse"


@pytest.fixture
def world(tmp_path: Path, s3_on_loopback: S3Server, objects: S3) -> Iterator[World]:
    made = World(tmp_path, s3_on_loopback, objects)
    yield made
    made.close()


class Api:
    """One caller's view of the API."""

    def __init__(self, world: World, key: str | None) -> None:
        self._client: FlaskClient = rest.application(world.app).test_client()
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def call(self, method: str, path: str, body: object = None, **headers: str):
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.open(path, method=method, json=body, headers=self.headers | more)

    def get(self, path: str):
        return self.call("GET", f"/api/v1{path}")

    def post(self, path: str, body: object = None, **headers: str):
        return self.call("POST", f"/api/v1{path}", body if body is not None else {}, **headers)


def key_for(world: World, account: str, role: Role) -> str:
    user = users.add(
        world.app,
        account=account,
        email=f"{role.value}@{account}.example",
        password=PASSWORD,
        role=role,
        now=world.now,
    )
    caller = Caller(account=account, user_id=user.id, role=role)
    record, key = auth.new_api_key(ids=world.app.ids, caller=caller, name="test", role=role, now=world.now)
    users.save_api_key(world.store, record)
    return key


@pytest.fixture
def admin(world: World) -> Api:
    """Of the account that runs the deployment."""
    users.appoint_operator(world.store, "acme")
    return Api(world, key_for(world, "acme", Role.ADMIN))
