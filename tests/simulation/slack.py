"""Slack as the product meets it: signed requests on their way to us, and our bot's calls on their way to it.

The workspace is the state machine that `dumont up` serves, the function and the adapter are the product's own; between
them requests are lost, late, twice, out of order and forged, and calls go wrong in every way a call can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from greenlet import getcurrent

from common.adapters.slack import Slack
from common.auth import SLACK_AGE_MAX_S
from common.errors import DeliveryFailed
from functions import slack as function
from infra.demo.slack import REDELIVER_AFTER_S, RESPONSE_URL_USES, Delivery, SlackSim, buttons
from infra.demo.wire import Answer, Request, json_answer
from tests.simulation.clock import Loop, Task
from tests.simulation.ports import Gate
from tests.simulation.slack_judge import Judge, Said
from tests.simulation.web import Posted, status_and_body

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")

TOKEN, SIGNING_SECRET = "xoxb-canary-0123456789", "slack-canary-0123456789abcdef"
API, RESPONSES = "https://slack.com/api", "https://hooks.slack.com"
PATIENCE_S = 3.0
"""Slack's, with our answer."""
THROTTLED_FOR_S = (1, 5, 30)
TROUBLES = (
    Answer(500, b"<html>Internal Server Error</html>", "text/html"),
    Answer(503, b"", "text/plain"),
    json_answer(200, {"ok": False, "error": "internal_error"}),
)


@dataclass
class Sent:
    """One command or press, and what we answered to its deliveries."""

    url: str
    """Its response_url."""
    user: str
    about: str
    """The instance that it is about, as far as its sender says so."""
    ts: str
    """Whatever was shown before has an older one."""
    answers: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def told(self) -> str:
        """The first answer's words; empty as long as there is none, or only a refusal."""
        return next((body.decode() for status, body in self.answers if status == 200), "")


class Workspace:
    def __init__(self, world: World, gate: Gate) -> None:
        self._world, self._rng = world, world.rng("slack")
        self.sim = SlackSim(self._rng, TOKEN, SIGNING_SECRET, base_url=RESPONSES)
        self.judge = Judge(world, self.sim)
        self.chat = FaultyChat(world, gate, self)
        self._sent: dict[bytes, Sent] = {}

    # --- people

    def type(self, user: str, text: str, about: str = "") -> Sent:
        url = self.sim.command(text, user=user, now=self._world.loop.clock())
        self.judge.typed(user, text)
        return self._send(Sent(url, user, about, self._last_ts()))

    def press(self, user: str, ts: str, action_id: str, about: str = "") -> Sent:
        """A button of a message that is there."""
        message = next(each for each in self.sim.messages if each.ts == ts)
        url = self.sim.press(ts, action_id, user=user, now=self._world.loop.clock())
        self.judge.pressed(user, url, ts, buttons(message.content)[action_id]["value"])
        return self._send(Sent(url, user, about, self._last_ts()))

    def _last_ts(self) -> str:
        return max((message.ts for message in self.sim.messages), default="")

    def _send(self, sent: Sent) -> Sent:
        for delivery in self.sim.take_due(self._world.loop.clock()):
            of = self._sent.setdefault(delivery.body, sent)
            self._world.loop.spawn(lambda delivery=delivery, of=of: self._attempt(delivery, of), "Slack")
        return sent

    # --- deliveries

    def _attempt(self, delivery: Delivery, sent: Sent) -> None:
        world, loop = self._world, self._world.loop
        if world.strike("slack_forged", sent.about):
            self._forge(delivery, sent)
        answer = self._delivered(delivery, sent)
        status, body = answer or (None, b"")
        self.sim.answered(delivery, status, body, loop.clock())
        if answer:
            sent.answers.append(answer)
        else:
            loop.after(REDELIVER_AFTER_S + 0.01, lambda: self._send(sent))

    def _delivered(self, delivery: Delivery, sent: Sent) -> tuple[int, bytes] | None:
        """What Slack hears within its patience."""
        world, loop, about = self._world, self._world.loop, sent.about
        headers = self.sim.signed(delivery, loop.clock())

        def later(after_s: float, body: bytes, signed: Callable[[], dict[str, str]]) -> None:
            world.at_or_when_quiet(loop.now + after_s, lambda: self._post(body, signed(), sent))

        if world.strike("slack_lost", about):
            return self._no_answer()
        if late := world.struck("slack_late", about):
            later(SLACK_AGE_MAX_S + 1 + late.length_s(), delivery.body, lambda: headers)
            return self._no_answer()
        if held := world.struck("slack_overtaken", about):
            later(held.length_s(), delivery.body, lambda: headers)
            return self._no_answer()
        task = self._post(delivery.body, headers, sent)
        if again := world.struck("slack_twice", about):
            later(again.length_s(), delivery.body, lambda: headers)
        if copy := world.struck("slack_signed_anew", about):
            later(copy.length_s(), delivery.body, lambda: self.sim.signed(delivery, loop.clock()))
        if not loop.join(task, PATIENCE_S) or task.error or world.strike("slack_reply_lost", about):
            return None
        answer: tuple[int, bytes] = task.result
        return answer

    def _no_answer(self) -> None:
        self._world.loop.sleep(PATIENCE_S)

    def _forge(self, delivery: Delivery, sent: Sent) -> None:
        """Another's words, or an old signature on a new date."""
        headers = self.sim.signed(delivery, self._world.loop.clock())
        if self._rng.random() < 0.5:
            forged, body = headers, delivery.body.replace(b"user_id=U0", b"user_id=U1") + b"&x=1"
        else:
            later = self._world.loop.clock() + timedelta(seconds=1)
            forged, body = {**headers, "X-Slack-Request-Timestamp": str(int(later.timestamp()))}, delivery.body
        self._post(body, forged, sent, is_forged=True)

    def _post(self, body: bytes, headers: dict[str, str], sent: Sent, *, is_forged: bool = False) -> Task:
        """One invocation of the function."""
        world, account = self._world, self.judge.account_of(sent.user)

        def handle() -> tuple[int, bytes]:
            arrived_at = world.loop.clock()
            answer = status_and_body(function.taken(world.app, Posted(body, headers, "/slack"), submit))  # type: ignore[arg-type]
            self.judge.answered(sent.user, headers, arrived_at, answer, is_forged=is_forged)
            return answer

        def submit(answering: Callable[[], dict[str, Any]]) -> Answering:
            answer = world.web.invoke("slack's answer", answering, account=account, since=world.loop.now)
            return Answering(world.loop, answer)

        return world.web.invoke("slack", handle, account=account)


class Answering:
    """What a thread is for the function: it dies with its process, which is the one that waits for it."""

    def __init__(self, loop: Loop, task: Task) -> None:
        self._loop, self._task = loop, task

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        if not self._loop.join(self._task, timeout or 0.0):
            raise TooLate
        if self._task.error:
            raise self._task.error
        told: dict[str, Any] = self._task.result
        return told


class FaultyChat:
    """`ports.Chat`."""

    def __init__(self, world: World, gate: Gate, workspace: Workspace) -> None:
        self._gate, self._workspace = gate, workspace
        self._slack = Slack(TOKEN, base_url=API)
        self._wire = vars(self._slack)["_http"] = LightSlack(world, workspace.sim)

    def post(self, channel: str, message: Mapping[str, Any]) -> tuple[str, str]:
        return self._call("post", message, channel, lambda: self._slack.post(channel, message), lambda told: told[1])

    def update(self, channel: str, ts: str, message: Mapping[str, Any]) -> None:
        user = f"U{channel[1:]}"
        self._call("update", message, user, lambda: self._slack.update(channel, ts, message), lambda _: ts)

    def respond(self, response_url: str, message: Mapping[str, Any]) -> None:
        url = self._workspace.sim.response_urls[response_url.rpartition("/")[2]]
        self._call(
            "respond", message, url.user, lambda: self._slack.respond(response_url, message), lambda _: url.message
        )

    def _call(
        self, verb: str, message: Mapping[str, Any], user: str, do: Callable[[], T], ts_of: Callable[[T], str]
    ) -> T:
        judge = self._workspace.judge
        said = judge.saying(user, message)

        def done() -> T:
            self._wire.about = said.about
            told = do()
            judge.showing(said, ts_of(told), is_late=not isinstance(getcurrent(), Task))
            return told

        return self._gate.call("chat", verb, done, about=said.about, mutates=True, unknown=DeliveryFailed)


class LightSlack:
    """In place of the adapter's HTTP client: its requests go to the workspace, which may have its own trouble."""

    def __init__(self, world: World, sim: SlackSim) -> None:
        self._world, self._sim = world, sim
        self.about = ""

    def post(self, url: str, *, json: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
        return Response(self._answer(urlsplit(url).path, _dumped(json), headers))

    def _answer(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        world = self._world
        if throttled := world.struck("chat_throttled", self.about):
            wait_s = throttled.rng.choice(THROTTLED_FOR_S)
            return json_answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": str(wait_s)})
        if trouble := world.struck("chat_500", self.about):
            return trouble.rng.choice(TROUBLES)
        if path.startswith("/response/") and world.strike("chat_url_dead", self.about):
            self._sim.response_urls[path.rpartition("/")[2]].uses = RESPONSE_URL_USES
        return self._sim.handle(Request("POST", path, {}, headers, body), world.loop.clock())


class Response:
    """What the adapter looks at of a response."""

    def __init__(self, answer: Answer) -> None:
        self.status_code, self.headers, self._body = answer.status, answer.headers, answer.body
        self.is_success = 200 <= answer.status < 300

    def json(self) -> Any:
        return json.loads(self._body)


def _dumped(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()


__all__ = ["Said", "Sent", "Workspace"]
