"""The function around it all: its answer leaves in time whatever the store does, and only we can have it work."""

from __future__ import annotations

import dataclasses
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import auth, bootstrap
from common.chatops.grammar import COMMAND, Verb
from common.errors import StoreUnavailable
from common.ports import Store
from common.topology import function as row
from tests.functions.slack_people import Somebody, function, text_of
from tests.functions.test_slack_hostile import form, signed
from tests.hand_cranked import World

ROOT = Path(__file__).resolve().parents[2]


class Behind:
    """The store, behind something that happens first."""

    def __init__(self, store: Store, first: Any) -> None:
        self._store, self._first = store, first

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._then(found) if callable(found) else found

    def _then(self, call: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            self._first()
            return call(*args, **kwargs)

        return called


def test_a_store_that_hangs_does_not_keep_slack_waiting(world: World) -> None:
    release = threading.Event()
    bootstrap.use(dataclasses.replace(world.app, store=Behind(world.store, lambda: release.wait(20))))
    body = form("list")

    began = time.monotonic()
    answer = function().post("/", data=body, headers=signed(body, at=world.now.timestamp()))
    took_s = time.monotonic() - began
    release.set()

    assert (answer.status_code, answer.json["response_type"]) == (200, "ephemeral")
    assert "longer than usual" in text_of(answer.json)
    assert took_s < 3.0


def test_a_store_that_does_not_answer_is_told_in_words(world: World) -> None:
    def down() -> None:
        raise StoreUnavailable("the store does not answer")

    bootstrap.use(dataclasses.replace(world.app, store=Behind(world.store, down)))
    body = form("list")
    answer = function().post("/", data=body, headers=signed(body, at=world.now.timestamp()))

    assert answer.status_code == 200
    assert "store does not answer" in text_of(answer.json)


def test_what_must_follow_is_done_by_whoever_holds_our_token_and_nobody_else(world: World) -> None:
    ada = Somebody(world).is_linked()
    ada.types("list")
    secret, now = world.app.settings.jwt_secret, world.now

    assert function().post("/work").status_code == 401
    forged = auth.outbox_token(secret="x" * 32, now=now)
    late = auth.outbox_token(secret=secret, now=now - timedelta(minutes=2))
    other = auth.scheduler_token("reconcile", secret=secret, now=now)
    for token in (forged, late, other):
        assert function().post("/work", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert ada.reads() == []

    right = auth.outbox_token(secret=secret, now=now)
    assert function().post("/work", headers={"Authorization": f"Bearer {right}"}).status_code == 200
    assert "no instances" in text_of(ada.reads()[0].content)


def test_without_slack_there_is_nothing_at_this_path(world: World) -> None:
    settings = world.app.settings.model_copy(update={"slack_signing_secret": None, "slack_bot_token": None})
    bootstrap.use(dataclasses.replace(world.app, settings=settings, chat=None))
    body = form("list")

    answer = function().post("/", data=body, headers=signed(body, at=world.now.timestamp()))

    assert (answer.status_code, answer.json["code"]) == (404, "not_found")


def test_a_request_is_accepted_for_five_minutes_both_ways(world: World) -> None:
    bootstrap.use(world.app)
    statuses = []
    for seconds in (-301, -299, 299, 301):
        body = form("help", nonce=str(seconds))
        headers = signed(body, at=world.now.timestamp() + seconds)
        statuses.append(function().post("/", data=body, headers=headers).status_code)

    assert statuses == [401, 200, 200, 401]


def test_slacks_own_check_of_the_address_is_answered(world: World) -> None:
    bootstrap.use(world.app)
    body = b"ssl_check=1"

    answer = function().post("/", data=body, headers=signed(body, at=world.now.timestamp()))

    assert (answer.status_code, answer.data) == (200, b"")


@pytest.fixture
def manifest() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra" / "deploy" / "slack_manifest.yaml").read_text())


def test_the_manifest_asks_for_what_we_use_and_points_at_the_function(manifest: dict[str, Any]) -> None:
    (command,) = manifest["features"]["slash_commands"]

    assert command["command"] == COMMAND
    assert command["url"] == manifest["settings"]["interactivity"]["request_url"]
    assert command["url"].endswith(row("slack").path)
    assert sorted(manifest["oauth_config"]["scopes"]["bot"]) == ["chat:write", "commands"]
    assert all(verb.value in command["usage_hint"] for verb in Verb)
