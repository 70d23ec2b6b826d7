"""A simulated Slack workspace: people who type and press, and the Web API and response URLs that our bot calls.

A state machine: request in, answer out, `now` passed in. It enforces what Slack publishes: Block Kit's limits, one
message a second per channel, response URLs that last 30 minutes and 5 uses. What people do comes out as signed
deliveries, at least once each: one that was not answered with 200 in time, or that the workspace sends twice anyway,
is signed anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from infra.demo import block_kit
from infra.demo.wire import Answer, Request, json_answer, json_body

TEAM = "T0DEMO0001"
CHANNEL = "C0DEMO0001"
BOT = "B0DEMO0001"
POST_INTERVAL_S = 1.0
"""Per channel; what comes faster is refused with 429."""
RESPONSE_URL_FOR = timedelta(minutes=30)
RESPONSE_URL_USES = 5
DELIVERIES_MAX = 3
"""Of one command or press, when nobody answers."""
REDELIVER_AFTER_S = 3.0
MESSAGES_KEPT = 2000


@dataclass
class Message:
    """One message that somebody sees; `versions` = everything it ever said, newest last."""

    channel: str
    ts: str
    response_url: str = ""
    """The one that it came by; empty = chat.postMessage."""
    ephemeral: bool = False
    user: str = ""
    """Who sees it, when it is ephemeral."""
    versions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def content(self) -> dict[str, Any]:
        return self.versions[-1]


@dataclass
class ResponseUrl:
    made_at: str
    channel: str
    user: str
    uses: int = 0
    message: str = ""
    """ts of the message that `replace_original` puts another one in the place of."""


@dataclass
class Delivery:
    """One signed request to the app, ready to send."""

    body: bytes
    due_at: datetime
    attempt: int = 1


@dataclass
class SlackSim:
    rng: random.Random
    token: str
    signing_secret: str
    base_url: str
    """Of its own face: response URLs begin with it."""
    twice: bool = False
    """Everything is delivered twice, each time signed anew: at least once is what is promised."""
    messages: list[Message] = field(default_factory=list)
    response_urls: dict[str, ResponseUrl] = field(default_factory=dict)
    posted_at: dict[str, datetime] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    """Every fault of a message that was refused."""
    _waiting: list[Delivery] = field(default_factory=list)
    _count: int = 0

    # --- people

    def command(self, text: str, *, user: str, now: datetime, channel: str = CHANNEL, command: str = "/gpu") -> str:
        """Somebody types a slash command; returns its response_url."""
        response_url = self.new_response_url(user=user, channel=channel, now=now)
        form = {
            "token": "deprecated",
            "team_id": TEAM,
            "team_domain": "demo",
            "channel_id": channel,
            "channel_name": "gpus",
            "user_id": user,
            "user_name": user.lower(),
            "command": command,
            "text": text,
            "api_app_id": "A0DEMO0001",
            "response_url": response_url,
            "trigger_id": self._id(),
        }
        self._send(urlencode(form).encode(), now)
        return response_url

    def press(self, ts: str, action_id: str, *, user: str, now: datetime) -> str:
        """Somebody presses a button of a message that is there; returns the response_url. Raises KeyError."""
        message = next((each for each in self.messages if each.ts == ts), None)
        if message is None:
            raise KeyError(ts)
        element = buttons(message.content)[action_id]
        response_url = self.new_response_url(user=user, channel=message.channel, now=now, message=ts)
        action = {"type": "button", "action_id": action_id, "value": element["value"], "action_ts": self._ts(now)}
        payload = {
            "type": "block_actions",
            "team": {"id": TEAM, "domain": "demo"},
            "user": {"id": user, "username": user.lower(), "team_id": TEAM},
            "channel": {"id": message.channel, "name": "gpus"},
            "container": {"type": "message", "message_ts": ts, "is_ephemeral": message.ephemeral},
            "message": {"ts": ts, "text": message.content.get("text", "")},
            "trigger_id": self._id(),
            "response_url": response_url,
            "actions": [action],
        }
        self._send(urlencode({"payload": json.dumps(payload)}).encode(), now)
        return response_url

    def _send(self, body: bytes, now: datetime) -> None:
        again = [Delivery(body, now + timedelta(seconds=REDELIVER_AFTER_S))] if self.twice else []
        self._waiting += [Delivery(body, now), *again]

    def new_response_url(self, *, user: str, channel: str, now: datetime, message: str = "") -> str:
        id = self._id()
        self.response_urls[id] = ResponseUrl(now.isoformat(), channel, user, message=message)
        return f"{self.base_url}/response/{id}"

    # --- deliveries

    def take_due(self, now: datetime) -> list[Delivery]:
        due = [delivery for delivery in self._waiting if delivery.due_at <= now]
        self._waiting = [delivery for delivery in self._waiting if delivery.due_at > now]
        return due

    def signed(self, delivery: Delivery, now: datetime) -> dict[str, str]:
        """The headers of one attempt."""
        stamp = str(int(now.timestamp()))
        basis = b"v0:" + stamp.encode() + b":" + delivery.body
        digest = hmac.new(self.signing_secret.encode(), basis, hashlib.sha256).hexdigest()
        return {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Slack-Request-Timestamp": stamp,
            "X-Slack-Signature": f"v0={digest}",
        }

    def answered(self, delivery: Delivery, status: int | None, body: bytes, now: datetime) -> None:
        """`status` None = no answer in time. What a command's answer says is shown to who typed it."""
        if status is None and delivery.attempt < DELIVERIES_MAX:
            later = now + timedelta(seconds=REDELIVER_AFTER_S)
            self._waiting.append(Delivery(delivery.body, later, delivery.attempt + 1))
        if status == 200 and body.strip() and not delivery.body.startswith(b"payload="):
            content = json.loads(body)
            if faults := block_kit.faults(content):
                self.refusals += faults
                return
            self._show(Message(CHANNEL, self._ts(now), "answer", ephemeral=True, versions=[content]))

    # --- the app's calls

    def handle(self, request: Request, now: datetime) -> Answer:
        words = [word for word in request.path.split("/") if word]
        match request.method, *words:
            case ["POST", "api", method]:
                return self._web_api(method, request, now)
            case ["POST", "response", *id] if id:
                return self._response("/".join(id), request, now)
            case ["GET", "response", *id] if id:
                url = f"{self.base_url}/response/{'/'.join(id)}"
                return json_answer(200, [asdict(message) for message in self.messages if message.response_url == url])
        return json_answer(404, {"ok": False, "error": "not_found"})

    def _web_api(self, method: str, request: Request, now: datetime) -> Answer:
        if request.authorization != f"Bearer {self.token}":
            return _refused("invalid_auth")
        body = json_body(request)
        if body is None:
            return _refused("json_not_object")
        match method:
            case "auth.test":
                return json_answer(200, {"ok": True, "team_id": TEAM, "bot_id": BOT, "user_id": "U0BOT00001"})
            case "chat.postMessage":
                return self._post(body, now)
            case "chat.update":
                return self._update(body)
        return _refused("unknown_method")

    def _post(self, body: Mapping[str, Any], now: datetime) -> Answer:
        channel = str(body.get("channel", ""))
        if channel[:1] not in ("C", "D", "G", "U", "W"):
            return _refused("channel_not_found")
        before = self.posted_at.get(channel)
        if before is not None and (now - before).total_seconds() < POST_INTERVAL_S:
            return json_answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "1"})
        if faults := self._faults(body):
            return _refused("invalid_blocks", faults)
        self.posted_at[channel] = now
        shown = f"D{channel[1:]}" if channel[0] in "UW" else channel
        message = self._show(Message(shown, self._ts(now), versions=[_content(body)]))
        return json_answer(200, {"ok": True, "channel": shown, "ts": message.ts, "message": message.content})

    def _update(self, body: Mapping[str, Any]) -> Answer:
        found = [m for m in self.messages if m.ts == body.get("ts") and m.channel == body.get("channel")]
        if not found or found[0].ephemeral:
            return _refused("message_not_found")
        if faults := self._faults(body):
            return _refused("invalid_blocks", faults)
        found[0].versions.append(_content(body))
        return json_answer(200, {"ok": True, "channel": found[0].channel, "ts": found[0].ts})

    def _response(self, id: str, request: Request, now: datetime) -> Answer:
        """One that nobody was given begins its life with its first use: a program may sign commands of its own."""
        url = self.response_urls.setdefault(id, ResponseUrl(now.isoformat(), CHANNEL, ""))
        if now - datetime.fromisoformat(url.made_at) >= RESPONSE_URL_FOR:
            return json_answer(404, {"ok": False, "error": "expired_url"})
        if url.uses >= RESPONSE_URL_USES:
            return json_answer(404, {"ok": False, "error": "used_url"})
        body = json_body(request)
        if body is None or (faults := self._faults(body)):
            return json_answer(400, {"ok": False, "error": "invalid_blocks", "faults": faults if body else []})
        url.uses += 1
        original = next((m for m in self.messages if m.ts == url.message), None)
        if body.get("replace_original") and original is not None:
            original.versions.append(_content(body))
        else:
            link = f"{self.base_url}/response/{id}"
            ephemeral = body.get("response_type", "ephemeral") != "in_channel"
            made = Message(url.channel, self._ts(now), link, ephemeral, url.user, [_content(body)])
            url.message = self._show(made).ts
        return json_answer(200, {"ok": True})

    # --- parts

    def _faults(self, body: Mapping[str, Any]) -> list[str]:
        found = block_kit.faults(body)
        self.refusals += found
        return found

    def _show(self, message: Message) -> Message:
        self.messages = [*self.messages[-MESSAGES_KEPT:], message]
        return message

    def _id(self) -> str:
        return self.rng.randbytes(12).hex()

    def _ts(self, now: datetime) -> str:
        self._count += 1
        return f"{int(now.timestamp())}.{self._count:06d}"

    def to_json(self) -> dict[str, Any]:
        """Deliveries under way are lost with the workspace's process, as they may be."""
        return {
            "messages": [asdict(message) for message in self.messages],
            "response_urls": {id: asdict(url) for id, url in self.response_urls.items()},
            "count": self._count,
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        self.messages = [Message(**message) for message in plain["messages"]]
        self.response_urls = {id: ResponseUrl(**url) for id, url in plain["response_urls"].items()}
        self._count = plain["count"]


def buttons(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """action_id -> button, of a message."""
    rows = [block["elements"] for block in content.get("blocks", []) if block["type"] == "actions"]
    return {element["action_id"]: element for row in rows for element in row}


def _content(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("text", "blocks") if name in body}


def _refused(error: str, faults: list[str] | None = None) -> Answer:
    more = {"response_metadata": {"messages": faults}} if faults else {}
    return json_answer(200, {"ok": False, "error": error, **more})
