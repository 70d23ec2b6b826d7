"""Slack over real HTTP against `dumont up`: signed by Slack's own signer, answered within its 3 seconds."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from slack_sdk.signature import SignatureVerifier

from infra.demo.slack import CHANNEL, TEAM, buttons
from infra.demo.workspace import USER
from tests.e2e.test_up import start

pytestmark = pytest.mark.e2e
SLACKS_PATIENCE_S = 3.0


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One `dumont up` for all."""
    started: list[subprocess.Popen[str]] = []
    yield start(tmp_path_factory.mktemp("up"), started)
    for up in started:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=40)


class Person:
    """Signs as Slack does, and reads what the workspace shows."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.slowest_s = 0.0
        self._asked, self._marker = 0, f"{time.time_ns()}"

    def types(self, text: str) -> tuple[dict[str, Any], str]:
        """The answer at once, and the response_url by which the next one comes."""
        self._asked += 1
        url = f"{self.facts['slack_response_url']}/{self._marker}-{self._asked}"
        fields = {"team_id": TEAM, "user_id": USER, "user_name": "ada", "channel_id": CHANNEL, "command": "/gpu"}
        body = urlencode({**fields, "text": text, "response_url": url, "trigger_id": f"trigger-{self._asked}"})
        answer = self.sends(body)
        assert answer.status_code == 200, answer.text
        return answer.json(), url

    def presses(self, message: dict[str, Any], label: str) -> httpx.Response:
        self._asked += 1
        (button,) = [b for b in buttons(message).values() if b["text"]["text"] == label]
        payload = {
            "type": "block_actions",
            "team": {"id": TEAM},
            "user": {"id": USER, "username": "ada"},
            "channel": {"id": CHANNEL},
            "response_url": f"{self.facts['slack_response_url']}/{self._marker}-{self._asked}",
            "actions": [{"type": "button", "action_id": button["action_id"], "value": button["value"]}],
        }
        return self.sends(urlencode({"payload": json.dumps(payload)}))

    def sends(self, body: str, *, headers: dict[str, str] | None = None) -> httpx.Response:
        began = time.monotonic()
        answer = httpx.post(self.facts["slack_url"], content=body, headers=headers or self.signed(body))
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        return answer

    def signed(self, body: str) -> dict[str, str]:
        stamp = str(int(time.time()))
        signature = SignatureVerifier(self.facts["slack_signing_secret"]).generate_signature(timestamp=stamp, body=body)
        assert signature
        kind = "application/x-www-form-urlencoded"
        return {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": signature, "Content-Type": kind}

    def reads(self, url: str, wanted: str, within_s: float = 60.0) -> dict[str, Any]:
        """The newest version of the message that came by `url`, once it holds the text."""

        def newest() -> dict[str, Any] | None:
            found = [m["versions"][-1] for m in httpx.get(url).json()]
            return next((content for content in found if wanted in json.dumps(content, ensure_ascii=False)), None)

        return until(newest, within_s, wanted)


def until(look: Callable[[], Any], within_s: float, what: str) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {what}")


def test_from_the_link_to_the_hibernated_machine_by_slack_alone(facts: dict[str, Any]) -> None:
    ada = Person(facts)
    api = httpx.Client(base_url=f"{facts['api']}/api/v1", headers={"Authorization": f"Bearer {facts['api_key']}"})

    assert "dumont slack link" in json.dumps(ada.types("list")[0])
    shown = json.dumps(ada.types("link")[0])
    code = shown.split("dumont slack link ")[1].split("`")[0]
    assert api.post("/slack/link", json={"code": code}).status_code == 201

    began = time.monotonic()
    _, url = ada.types("list")
    ada.reads(url, "no instances")
    assert time.monotonic() - began < 5.0  # a hint, not the minute job

    _, url = ada.types("deploy RTX 4090 max 1 as trainer")
    plan = ada.reads(url, "Approve")
    assert api.get("/instances").json()["items"] == []
    assert ada.presses(plan, "Approve").status_code == 200
    again = ada.presses(plan, "Approve")  # newly signed
    assert (again.status_code, "taken already" in again.text) == (200, True)
    (instance,) = until(lambda: api.get("/instances").json()["items"], 20, "an instance")
    running = until(lambda: _in_state(api, instance["id"], "running"), 60, "running")
    assert running["name"] == "trainer"

    _, url = ada.types("stop trainer")
    ada.reads(url, "*hibernated*")
    until(lambda: httpx.get(f"{facts['world']}/rentals").json() == [], 30, "no machine left")
    _, url = ada.types("savings today")
    ada.reads(url, "not billed, because hibernated")
    assert ada.slowest_s < SLACKS_PATIENCE_S


def _in_state(api: httpx.Client, id: str, state: str) -> dict[str, Any] | None:
    found = api.get(f"/instances/{id}").json()
    return found if found["state"] == state else None


def test_a_repeated_request_is_a_conflict_and_a_forged_one_is_refused(facts: dict[str, Any]) -> None:
    person = Person(facts)
    body = urlencode({"team_id": TEAM, "user_id": USER, "channel_id": CHANNEL, "text": "list"})
    headers = person.signed(body)

    assert person.sends(body, headers=headers).status_code == 200
    assert person.sends(body, headers=headers).status_code == 409
    assert person.sends(body + "&text=x", headers=headers).status_code == 401
    assert person.sends(body, headers={**headers, "X-Slack-Request-Timestamp": "yesterday"}).status_code == 401


def test_people_of_the_simulated_workspace_can_be_played_over_its_control_face(facts: dict[str, Any]) -> None:
    world = facts["world"]

    assert httpx.post(f"{world}/slack/command", json={"text": "help"}).status_code == 202
    until(lambda: "`/gpu wake [NAME]`" in httpx.get(f"{world}/slack/messages").text, 10, "an answer")
    assert httpx.post(f"{world}/slack/press", json={"ts": "1", "action_id": "x"}).status_code == 404
