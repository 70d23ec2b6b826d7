"""Somebody in the simulated workspace, whose commands reach the real function as Slack would send them."""

from __future__ import annotations

import functools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import functions_framework
import pytest
from flask.testing import FlaskClient

from common import bootstrap
from common.domain.account import Role
from common.workflows import outbox
from infra.demo.slack import CHANNEL, REDELIVER_AFTER_S, Message, buttons
from tests.functions.conftest import Api, key_for
from tests.hand_cranked import World

SOURCE = Path(__file__).resolve().parents[2] / "functions" / "slack.py"


@functools.cache
def function() -> FlaskClient:
    """The Cloud Function, loaded as Google loads it; it works with the app given to `bootstrap.use`."""
    return functions_framework.create_app("slack", str(SOURCE)).test_client()


class Somebody:
    """One person: types, presses, reads. Time passes only when the test lets it."""

    def __init__(self, world: World, user: str = "U0ADA00001") -> None:
        bootstrap.use(world.app)
        self.world, self.user = world, user
        self.statuses: list[int] = []
        self.url = ""
        """Of the last command."""

    def types(self, text: str, *, channel: str = CHANNEL) -> dict[str, Any]:
        """What the HTTP answer says at once ({} for an empty one)."""
        self.url = self.world.slack_sim.command(text, user=self.user, now=self.world.now, channel=channel)
        return self._delivered()

    def presses(self, message: Message, label: str) -> dict[str, Any]:
        found = [id for id, button in buttons(message.content).items() if button["text"]["text"] == label]
        assert found, f"no button {label!r} in {message.content}"
        self.world.slack_sim.press(message.ts, found[0], user=self.user, now=self.world.now)
        return self._delivered()

    def _delivered(self) -> dict[str, Any]:
        bootstrap.use(self.world.app)
        answers = self._deliver_due()
        if self.world.slack_sim.twice:
            self.world.now += timedelta(seconds=REDELIVER_AFTER_S)
            self._deliver_due()
        return answers[0]

    def _deliver_due(self) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        sim, now = self.world.slack_sim, self.world.now
        for delivery in sim.take_due(now):
            answer = function().post("/", data=delivery.body, headers=sim.signed(delivery, now))
            sim.answered(delivery, answer.status_code, answer.data, now)
            self.statuses.append(answer.status_code)
            answers.append(json.loads(answer.data or b"{}"))
        return answers

    def asks(self, text: str, within_s: float = 60.0) -> Message:
        """Types, and waits for the answer that comes after the first one."""
        self.types(text)
        url, sim = self.url, self.world.slack_sim
        self.world.until(lambda: any(m.response_url == url for m in sim.messages), within_s=within_s)
        return next(message for message in sim.messages if message.response_url == url)

    def reads(self) -> list[Message]:
        """What came by response_url or as a direct message."""
        direct = f"D{self.user[1:]}"
        return [
            m
            for m in self.world.slack_sim.messages
            if (m.response_url.startswith("http") and m.user == self.user) or m.channel == direct
        ]

    def is_linked(self, account: str = "acme", role: Role = Role.ADMIN) -> Somebody:
        """By the way a person would go: a code in Slack, given to the API by who is signed in."""
        shown = self.types("link")["blocks"][0]["text"]["text"]
        code = shown.split("dumont slack link ")[1].strip("`\n ")
        answer = Api(self.world, key_for(self.world, account, role)).post("/slack/link", {"code": code})
        assert answer.status_code == 201, answer.text
        return self


def text_of(content: dict[str, Any]) -> str:
    """Everything a person can read in it."""
    return json.dumps(content, ensure_ascii=False)


@pytest.fixture
def ada(world: World) -> Somebody:
    """An admin of acme."""
    return Somebody(world).is_linked()


def another_admin(world: World) -> str:
    from common import auth
    from common.domain.account import Caller
    from common.workflows import users

    user = users.add(
        world.app, account="acme", email="root@acme.example", password="12345678", role=Role.ADMIN, now=world.now
    )
    caller = Caller(account="acme", user_id=user.id, role=Role.ADMIN)
    record, key = auth.new_api_key(ids=world.app.ids, caller=caller, name="t", role=Role.ADMIN, now=world.now)
    users.save_api_key(world.store, record)
    return key


def errand(world: World) -> outbox.Message:
    """The one that waits to be carried out."""
    docs = world.store.query("outbox", [("account", "==", "acme"), ("state", "==", "waiting")])
    (message,) = [outbox.Message.model_validate(d.data) for d in docs if d.data["kind"] == "slack.errand"]
    return message
