"""Malformed, forged, replayed and hostile requests: none acts, none leaks, none crashes, each gets a proper answer.

The corpus is built by code: every way of breaking a request x what could be gained by it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from common import bootstrap
from common.chatops.press import Press
from infra.demo import block_kit
from infra.demo.slack import CHANNEL, TEAM
from tests.functions.slack_people import Somebody, function
from tests.functions.test_story_by_hand import running, write
from tests.hand_cranked import SLACK_SECRET, World

EVE, TARGET_NAME, SECRET_NAME = "U0EVE00001", "crown-jewels", "acme-secret-project"


@dataclasses.dataclass(frozen=True)
class Case:
    """A request to send; `status` = what it must be answered with (None = 200 or a refusal, but a proper one)."""

    name: str
    body: bytes
    headers: dict[str, str]
    status: int | None = None

    def __str__(self) -> str:
        return self.name


def signed(body: bytes, *, at: float, secret: str = SLACK_SECRET, stamp: str | None = None) -> dict[str, str]:
    timestamp = stamp if stamp is not None else str(int(at))
    digest = hmac.new(secret.encode(), b"v0:" + timestamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return {"X-Slack-Request-Timestamp": timestamp, "X-Slack-Signature": f"v0={digest}"}


def form(text: str, **more: str) -> bytes:
    fields = {"team_id": TEAM, "user_id": EVE, "user_name": "eve", "channel_id": CHANNEL, "command": "/gpu"}
    return urlencode({**fields, "text": text, **more}).encode()


def press(value: str, **more: Any) -> bytes:
    payload = {
        "type": "block_actions",
        "team": {"id": TEAM},
        "user": {"id": EVE, "username": "eve"},
        "channel": {"id": CHANNEL},
        "actions": [{"action_id": "x", "value": value}],
        **more,
    }
    return urlencode({"payload": json.dumps(payload)}).encode()


# --- the corpus


def forged(at: float, id: str) -> Iterator[tuple[str, bytes, dict[str, str], int | None]]:
    """Nothing that Slack did not sign, now, gets further than a 401."""
    verbs = ["list", f"hibernate {id}", f"destroy {id}", "deploy h100 sxm", "savings", f"wake {id}"]
    for verb in verbs:
        body = form(verb)
        right = signed(body, at=at)
        yield f"no headers: {verb}", body, {}, 401
        yield f"another secret: {verb}", body, signed(body, at=at, secret="0" * 32), 401
        yield f"an empty secret: {verb}", body, signed(body, at=at, secret=""), 401
        yield f"another body: {verb}", body + b"&text=destroy", right, 401
        yield f"a cut signature: {verb}", body, {**right, "X-Slack-Signature": right["X-Slack-Signature"][:-1]}, 401
        yield f"v1: {verb}", body, {**right, "X-Slack-Signature": "v1" + right["X-Slack-Signature"][2:]}, 401
        yield f"upper case: {verb}", body, {**right, "X-Slack-Signature": right["X-Slack-Signature"].upper()}, 401
        yield f"an umlaut: {verb}", body, {**right, "X-Slack-Signature": "v0=ü"}, 401
        for seconds in (-301, 301, -86_400, 10**9):
            yield f"{seconds} s off: {verb}", body, signed(body, at=at + seconds), 401
    body = form(f"destroy {id}")
    for stamp in ("", "now", "1e9", "-1", "0x10", "1" * 40, " 1", f"{int(at)}.0", "١٢٣", "NaN", "inf", "1_0"):
        yield f"timestamp {stamp!r}", body, signed(body, at=at, stamp=stamp), 401


def malformed(at: float) -> Iterator[tuple[str, bytes, dict[str, str], int | None]]:
    """Rightly signed and wrongly made."""
    rng = random.Random(5)
    bodies = [b"", b"&", b"=", b"{}", b"null", b"\xff\xfe", b"payload=", b"payload=%7B", b"payload=null", b"payload=[]"]
    bodies += [b"payload=" + json.dumps(x).encode() for x in (1, "x", {}, {"type": "block_actions"}, {"type": 5})]
    bodies += [b"text=list", b"text=list&team_id=&user_id=", b"team_id=../..&user_id=..&text=list", b"a=1&" * 200]
    bodies += [
        form("list", user_id=user) for user in ("", "u0eve", "U0.EVE", "U0/../X", "*", "U" * 100, "U0\0EVE", "ü")
    ]
    bodies += [form("list", team_id=team) for team in ("", "t", "T.1", "T0/..", "__T__", "T" * 60)]
    bodies += [rng.randbytes(size) for size in (1, 10, 100, 1000, 5000)]
    bodies += [press("x", actions=actions) for actions in ([], [{}], [{"value": None}], [{"value": 5}], ["x"], {}, 5)]
    bodies += [press("x", **{name: value}) for name in ("team", "user", "channel") for value in (None, [], "x", {})]
    bodies += [press("x", type=kind) for kind in ("view_submission", "shortcut", "message_action", "", None)]
    bodies += [press(value) for value in ("", "{}", "[]", "null", "x" * 2000, '{"op":"1"}', '{"op":1,"ask":2}')]
    bodies += [b"payload=" + b"[" * 20_000, b"payload=" + b'{"a":' * 5_000, b"ssl_check=1", form("list" * 5000)]
    for number, body in enumerate(bodies):
        yield f"malformed {number}: {body[:40]!r}", body, signed(body, at=at), None


def texts(id: str) -> list[str]:
    """What somebody of another account may type, with the id of an instance that is not theirs."""
    verbs = ["show", "wake", "hibernate", "stop", "snooze", "destroy", "terminate"]
    targets = [
        *(id, f"acme.{id}", f"{id}.", f"../acme.{id}", f"acme/{id}", f"%2e%2e/{id}", f"{id}\0", f"{id}\u202e"),
        *(TARGET_NAME, TARGET_NAME.upper(), f'"{TARGET_NAME}"', "*", "%", "' OR '1'='1", '"; DROP TABLE instances;--'),
        *(
            "{{7*7}}",
            "${jndi:ldap://x}",
            "$(id)",
            "`id`",
            "<!channel>",
            "<@U0ADA00001>",
            "<https://x|y>",
            "&lt;!here&gt;",
        ),
    ]
    return [f"{verb} {target}" for verb in verbs for target in targets] + WORDS + [f"destroy {id} --discard"]


WORDS = [
    *("destroy", "destroy all", "destroy --force", "destroy ID yes", "rm -rf /", "list all", "list --account acme"),
    *(
        "list acme",
        "savings 99999",
        "savings -1",
        "savings acme",
        "market <!here>",
        "login acme",
        "link --account acme",
    ),
    *("deploy h100 sxm max 0", "deploy h100 sxm max -1", "deploy h100 sxm max NaN", "deploy x max 1e309"),
    *("deploy h100 sxm disk 999999", "deploy h100 sxm in XX", "deploy h100 sxm by luck", "deploy 99x h100 sxm"),
    *("deploy " + "A" * 900, "deploy h100 sxm as " + "n" * 65, "deploy h100 sxm idle 0", "deploy h100 sxm disk 1"),
    *("snooze 0", "snooze 99999h", "snooze ID 25h", "snooze 1h 2h 3h", "wake " + "w" * 65, "x" * 1001),
    *("help; destroy", "\u202ehelp", "𝕕𝕖𝕡𝕝𝕠𝕪", "ｄｅｓｔｒｏｙ", "destroy\u00a0all", "/gpu /gpu /gpu"),
    *('"' * 999, "“”‘’" * 200, "show " + "🦄" * 60, "\ud7ff\ufffd", "\x00\x01\x02", "\n" * 500),
]


def presses(id: str) -> Iterator[str]:
    """Buttons that we never made, or made for somebody else."""
    for verb, fields in (
        ("wake", {}),
        ("hibernate", {}),
        ("destroy", {}),
        ("snooze", {"minutes": 1440}),
        ("show", {}),
    ):
        for target in (id, TARGET_NAME, f"acme.{id}", "../x", ""):
            yield Press.of(f"eve {verb} {target}", verb, instance=target, **fields).value
    for spec in ({"gpu": "H100 SXM"}, {"gpu": "H100 SXM", "account": "acme"}, {}, {"gpu": ["x"]}, {"gpu": "x" * 1000}):
        yield Press.of(f"eve {spec}", "deploy", spec=spec).value
    real = json.loads(Press.of("eve", "destroy", instance=id).value)
    yield json.dumps(real | {"op": "../../etc/passwd"})
    yield json.dumps(real | {"account": "acme"})
    yield json.dumps(real | {"ask": {"verb": "purge", "instance": id}})
    yield json.dumps(real | {"ask": {"verb": "destroy", "instance": id, "discard": True}})


def corpus(at: float, id: str) -> list[Case]:
    cases = [Case(*row) for row in (*forged(at, id), *malformed(at))]
    asked = [(text, f"http://127.0.0.1:1/response/text-{n}") for n, text in enumerate(texts(id))]
    pressed = [(value, f"http://127.0.0.1:1/response/press-{n}") for n, value in enumerate(presses(id))]
    bodies = [(f"text {text[:60]!r}", form(text, response_url=url)) for text, url in asked]
    bodies += [(f"press {value[:60]}", press(value, response_url=url)) for value, url in pressed]
    rightly = [Case(name, body, signed(body, at=at)) for name, body in bodies]
    replays = [Case(f"replay of {case}", case.body, case.headers, 409) for case in rightly[:40]]
    return [*cases, *rightly, *replays]


SIZE = len(corpus(0.0, "x" * 12))


# --- the judgement


@pytest.fixture
def attacked(world: World) -> tuple[World, str]:
    """acme owns a running instance; eve is a well linked user of another account, which owns nothing."""
    id = running(world)
    write(world, id)
    doc = world.store.get("instances", f"acme.{id}")
    assert doc
    world.store.cas(doc, {**doc.data, "name": TARGET_NAME, "reason": SECRET_NAME})
    Somebody(world, EVE).is_linked("evil")
    return world, id


def test_the_corpus_is_large_enough() -> None:
    assert SIZE >= 300


def test_nothing_hostile_acts_leaks_or_crashes(attacked: tuple[World, str]) -> None:
    world, id = attacked
    before = world.record(id)
    machines = {contract.label for contract in world.sim.contracts()}
    bootstrap.use(world.app)
    for case in corpus(world.now.timestamp(), id):
        headers = {**case.headers, "Content-Type": "application/x-www-form-urlencoded"}
        answer = function().post("/", data=case.body, headers=_latin(headers))
        judge(case, answer.status_code, answer.mimetype, answer.data, id)
    world.app.nudge_outbox()
    world.until(lambda: not waiting_errands(world), within_s=120)

    after = world.record(id)
    assert (after.want, after.phase, after.epoch, after.awake_until) == (before.want, before.phase, before.epoch, None)
    assert {contract.label for contract in world.sim.contracts()} == machines
    assert [doc.id for doc in world.store.query("instances", [("account", "==", "evil")])] == []
    read = [message for message in world.slack_sim.messages if "/response/" in message.response_url]
    assert len(read) > 150, "the errands of eve were carried out and answered"
    said = json.dumps([message.versions for message in read])
    assert "<!" not in said
    assert "<@" not in said
    for secret in (SECRET_NAME, world.app.settings.jwt_secret, SLACK_SECRET, "xoxb-sim", str(before.writer)):
        assert secret not in said
    assert not world.slack_sim.refusals
    assert [fields for event, fields in world.log if event == "internal_error"] == []


def waiting_errands(world: World) -> list[str]:
    docs = world.store.query("outbox", [("account", "==", "evil"), ("state", "==", "waiting")])
    return [doc.id for doc in docs]


def judge(case: Case, status: int, mimetype: str, body: bytes, id: str) -> None:
    """Every answer is one that Slack, or a client of the API, can read."""
    allowed = {case.status} if case.status else {200, 400, 409}
    assert status in allowed, f"{case}: {status} {body[:300]!r}"
    if status != 200:
        assert mimetype == "application/problem+json", case
        assert json.loads(body)["status"] == status
    elif body:
        content = json.loads(body)
        assert content["response_type"] == "ephemeral", case
        assert block_kit.faults(content) == [], case
        assert SECRET_NAME.encode() not in body, case
        assert b"<!" not in body, case
        assert b"<@" not in body, case


def _latin(headers: dict[str, str]) -> dict[str, str]:
    """Headers travel as Latin-1; what does not fit is sent as its bytes."""
    return {name: value.encode().decode("latin-1") for name, value in headers.items()}
