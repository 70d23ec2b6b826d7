"""The simulated workspace speaks Slack's wire: Slack's own clients and signer, and our adapter, against its real face.

What Slack publishes is enforced: lengths, counts, one message a second per channel, response URLs that end.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.models import blocks as sdk
from slack_sdk.signature import SignatureVerifier
from slack_sdk.webhook import WebhookClient
from werkzeug.serving import make_server

from common import auth
from common.adapters.slack import Slack
from common.chatops import blocks
from common.errors import DeliveryFailed, DeliveryRefused, Unauthenticated
from infra.demo.http_face import HttpFace
from infra.demo.slack import CHANNEL, SlackSim

TOKEN, SECRET = "xoxb-contract", "8f742231b10e8888abcd99yyyzzz85a5"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class Workspace:
    sim: SlackSim
    url: str
    now: datetime = START

    def response_url(self) -> str:
        return self.sim.new_response_url(user="U0ADA00001", channel=CHANNEL, now=self.now)


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    sim = SlackSim(random.Random(1), TOKEN, SECRET, base_url="")
    made = Workspace(sim, "")
    server = make_server("127.0.0.1", 0, HttpFace(sim, clock=lambda: made.now, lock=contextlib.nullcontext()))
    made.url = sim.base_url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(workspace: Workspace) -> WebClient:
    return WebClient(TOKEN, base_url=f"{workspace.url}/api/")


@pytest.fixture
def adapter(workspace: Workspace) -> Iterator[Slack]:
    made = Slack(TOKEN, base_url=f"{workspace.url}/api", loopback_allowed=True)
    yield made
    made.close()


def line(text: str = "hello") -> dict[str, Any]:
    return blocks.message(text, [blocks.section(text)])


# --- Slack's own clients


def test_slacks_client_posts_and_updates_as_our_adapter_does(
    workspace: Workspace, client: WebClient, adapter: Slack
) -> None:
    section = sdk.SectionBlock(text="hello")
    posted = client.chat_postMessage(channel=CHANNEL, text="hello", blocks=[section])
    client.chat_update(channel=CHANNEL, ts=posted["ts"], text="edited", blocks=[section])
    workspace.now += timedelta(seconds=1)
    channel, ts = adapter.post(CHANNEL, line())
    adapter.update(channel, ts, line("edited"))

    theirs, ours = workspace.sim.messages
    assert [version["text"] for version in theirs.versions] == [version["text"] for version in ours.versions]
    assert theirs.versions[0]["blocks"][0]["type"] == ours.versions[0]["blocks"][0]["type"]


def test_a_wrong_token_is_refused(workspace: Workspace) -> None:
    with pytest.raises(SlackApiError, match="invalid_auth"):
        WebClient("xoxb-wrong", base_url=f"{workspace.url}/api/").auth_test()


def test_slacks_webhook_client_answers_by_response_url_five_times(workspace: Workspace) -> None:
    webhook = WebhookClient(workspace.response_url())

    answers = [webhook.send(text="hello", replace_original=number > 0) for number in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 5 + [404]
    assert "used_url" in answers[5].body
    (message,) = workspace.sim.messages
    assert len(message.versions) == 5


def test_a_response_url_ends_after_thirty_minutes(workspace: Workspace, adapter: Slack) -> None:
    url = workspace.response_url()
    workspace.now += timedelta(minutes=29, seconds=59)
    adapter.respond(url, line())
    workspace.now += timedelta(seconds=1)

    with pytest.raises(DeliveryRefused, match="404"):
        adapter.respond(url, line())


def test_slacks_signer_and_our_check_agree(workspace: Workspace) -> None:
    body, verifier = b"text=list&user_id=U1", SignatureVerifier(SECRET)
    for seconds in (0, -299, 299):
        stamp = str(int(START.timestamp()) + seconds)
        signature = verifier.generate_signature(timestamp=stamp, body=body)
        assert signature
        auth.check_slack(body, timestamp=stamp, signature=signature, secret=SECRET, now=START)
        with pytest.raises(Unauthenticated):
            auth.check_slack(body + b" ", timestamp=stamp, signature=signature, secret=SECRET, now=START)
    for seconds in (-301, 301):
        stamp = str(int(START.timestamp()) + seconds)
        with pytest.raises(Unauthenticated):
            signature = verifier.generate_signature(timestamp=stamp, body=body) or ""
            auth.check_slack(body, timestamp=stamp, signature=signature, secret=SECRET, now=START)


def test_what_the_workspace_sends_is_signed_as_slack_signs(workspace: Workspace) -> None:
    workspace.sim.command("list", user="U0ADA00001", now=START)
    (delivery,) = workspace.sim.take_due(START)
    headers = workspace.sim.signed(delivery, START)
    verifier = SignatureVerifier(SECRET, clock=_Clock())

    assert verifier.is_valid_request(delivery.body, headers)
    assert not verifier.is_valid_request(delivery.body + b"&x=1", headers)


class _Clock:
    def now(self) -> float:
        return START.timestamp()


# --- what Slack refuses


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ({"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}, "3000"),
        ({"type": "section", "text": {"type": "mrkdwn", "text": ""}}, "1 to"),
        ({"type": "section"}, "needs a text"),
        ({"type": "section", "fields": [{"type": "mrkdwn", "text": "x"}] * 11}, "10 fields"),
        ({"type": "section", "fields": [{"type": "mrkdwn", "text": "x" * 2001}]}, "2000"),
        ({"type": "header", "text": {"type": "plain_text", "text": "x" * 151}}, "150"),
        ({"type": "header", "text": {"type": "mrkdwn", "text": "x"}}, "plain_text"),
        ({"type": "context", "elements": [{"type": "mrkdwn", "text": "x"}] * 11}, "10 elements"),
        ({"type": "actions", "elements": []}, "1 to 25"),
        ({"type": "actions", "elements": [blocks.button(str(n), action_id=str(n), value="") for n in range(26)]}, "25"),
        ({"type": "actions", "elements": [blocks.button("x", action_id="same", value="")] * 2}, "one action_id"),
        (
            {
                "type": "context_actions",
                "elements": [blocks.button(str(n), action_id=str(n), value="") for n in range(6)],
            },
            "1 to 5",
        ),
        (
            {"type": "actions", "elements": [{**blocks.button("x", action_id="x", value=""), "value": "v" * 2001}]},
            "2000",
        ),
        (
            {"type": "actions", "elements": [{**blocks.button("x", action_id="x", value=""), "action_id": "a" * 256}]},
            "255",
        ),
        ({"type": "actions", "elements": [{**blocks.button("x", action_id="x", value=""), "style": "green"}]}, "style"),
        ({"type": "carousel"}, "unsupported"),
    ],
)
def test_a_block_beyond_the_published_limits_is_refused(
    workspace: Workspace, adapter: Slack, block: dict, fault: str
) -> None:
    with pytest.raises(DeliveryRefused, match="invalid_blocks"):
        adapter.post(CHANNEL, {"text": "x", "blocks": [block]})

    assert any(fault in found for found in workspace.sim.refusals), workspace.sim.refusals
    assert workspace.sim.messages == []


def test_a_message_has_fifty_blocks_and_no_more(workspace: Workspace, adapter: Slack) -> None:
    with pytest.raises(DeliveryRefused):
        adapter.post(CHANNEL, {"text": "x", "blocks": [blocks.section("x")] * 51})
    adapter.post(CHANNEL, blocks.message("x", [blocks.section("x")] * 200))

    assert len(workspace.sim.messages[0].content["blocks"]) == 50


def test_one_message_a_second_per_channel_and_429_says_how_long(
    workspace: Workspace, client: WebClient, adapter: Slack
) -> None:
    adapter.post(CHANNEL, line())
    with pytest.raises(DeliveryFailed) as ours:
        adapter.post(CHANNEL, line())
    with pytest.raises(SlackApiError) as theirs:
        client.chat_postMessage(channel=CHANNEL, text="x")
    adapter.post("U0ADA00001", line())
    workspace.now += timedelta(seconds=1)
    adapter.post(CHANNEL, line())

    assert ours.value.retry_after_s == 1.0
    assert not isinstance(ours.value, DeliveryRefused)
    assert (theirs.value.response.status_code, theirs.value.response.headers["Retry-After"]) == (429, "1")
    assert len(workspace.sim.messages) == 3


# --- our adapter


def test_what_another_attempt_would_not_change_is_final_and_what_an_operator_mends_is_not(
    workspace: Workspace, adapter: Slack
) -> None:
    with pytest.raises(DeliveryRefused, match="channel_not_found"):
        adapter.post("#general", line())
    with pytest.raises(DeliveryRefused, match="message_not_found"):
        adapter.update(CHANNEL, "1.1", line())
    wrong = Slack("xoxb-wrong", base_url=f"{workspace.url}/api", loopback_allowed=True)
    with pytest.raises(DeliveryFailed, match="invalid_auth") as caught:
        wrong.post(CHANNEL, line())
    wrong.close()
    assert not isinstance(caught.value, DeliveryRefused)


def test_nobody_there_is_a_failure_and_not_the_end() -> None:
    gone = Slack(TOKEN, base_url="http://127.0.0.1:9/api", loopback_allowed=True)
    with pytest.raises(DeliveryFailed) as caught:
        gone.post(CHANNEL, line())
    gone.close()
    assert not isinstance(caught.value, DeliveryRefused)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "x",
            "http://hooks.slack.com/x",
            "https://hooks.slack.com.evil.com/x",
            "https://evil.com/hooks.slack.com",
        ),
        *(
            "https://user@hooks.slack.com/x",
            "https://hooks.slack.com:8443/x",
            "http://127.0.0.1:9/x",
            "file:///etc/passwd",
        ),
        *("http://169.254.169.254/", "https://[::1", "https://hooks.slack.com@evil.com/"),
    ],
)
def test_nothing_is_posted_to_a_response_url_that_is_not_slacks(url: str) -> None:
    adapter = Slack(TOKEN)
    with pytest.raises(DeliveryRefused, match="not Slack's"):
        adapter.respond(url, line())
    adapter.close()
