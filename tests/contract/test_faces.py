"""Both faces of a simulated service answer alike: one script, in process and over loopback HTTP, byte for byte."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx
import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from common.adapters.gcp import GcpCompute
from common.adapters.slack import Slack
from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.chatops import blocks
from common.domain.offer import Wanted
from common.domain.standby_price import Terms, standby_offer
from common.errors import DumontError
from common.ports import Launch, Market
from infra.demo.gcp.compute import ComputeSim
from infra.demo.http_face import HttpFace
from infra.demo.slack import CHANNEL, RESPONSE_URL_FOR, RESPONSE_URL_USES, SlackSim
from infra.demo.tensordock import TensorDockSim
from infra.demo.vast import INTERVALS, VastSim
from infra.demo.wire import Answer, Request
from tests.gcp_rig import Carrier, service_account_key
from tests.hand_cranked import SimTransport

KEY = "sim-key"
START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
BOOTED_S = 20.0
HOUR = timedelta(hours=1)
HURRIED = 120
"""Requests within a second: more than either vendor allows."""
RAW: dict[str, tuple[tuple[str, str, str], ...]] = {
    "vast": (
        ("POST", "/api/v0/bundles/", "half of {"),
        ("POST", "/api/v0/bundles/", '{"no_such_key": {"eq": 1}}'),
        ("PUT", "/api/v0/asks/999999/", '{"disk": 10}'),
        ("GET", "/api/v1/instances/?select_filters=%7B%7D&limit=1&after_token=%22x%22", ""),
        ("GET", "/api/v0/charges/?limit=1", ""),
        ("GET", "/no/such/endpoint", ""),
    ),
    "tensordock": (
        ("POST", "/api/v2/instances", "half of {"),
        ("POST", "/api/v2/instances", '{"data": {"attributes": {"name": "\u00e9", "image": "i"}}}'),
        ("GET", "/api/v2/locations", ""),
        ("GET", "/api/v2/hostnodes/nobody", ""),
        ("DELETE", "/api/v2/instances/nobody", ""),
        ("GET", "/no/such/endpoint", ""),
    ),
}
"""What no adapter sends: (method, target, body)."""
TOKEN, LOOPBACK = "xoxb-faces", "http://127.0.0.1"
RAW_OF_SLACK = (
    ("POST", "/api/chat.postMessage", "half of {"),
    ("POST", "/api/chat.update", "[]"),
    ("POST", "/api/auth.test", "{}"),
    ("POST", "/api/no.such.method", "{}"),
    ("POST", "/response/nobodys/own", '{"text": "hello"}'),
    ("POST", "/response/nobodys", "half of {"),
    ("GET", "/response/nobodys/own", ""),
    ("GET", "/no/such/endpoint", ""),
)


PROJECT = "/compute/v1/projects/demo-project"
RAW_OF_GOOGLE: tuple[tuple[str, str, str], ...] = (
    ("POST", f"{PROJECT}/zones/us-east1-b/instances", "half of {"),
    ("POST", f"{PROJECT}/zones/us-east1-b/instances", "{}"),
    ("POST", f"{PROJECT}/zones/mars-north1-a/instances", '{"name": "é"}'),
    ("GET", f"{PROJECT}/aggregated/instances?filter=nonsense", ""),
    ("GET", f"{PROJECT}/zones/us-east1-b/operations/nobody", ""),
    ("POST", f"{PROJECT}/regions/us-east1/operations/nobody/wait", ""),
    ("POST", f"{PROJECT}/zones/us-east1-b/instances/nobody/stop", ""),
    ("GET", "/compute/v1/projects/another/zones/us-east1-b/instances/nobody", ""),
    ("GET", "/no/such/endpoint", ""),
)


class Exchange(NamedTuple):
    asked: str
    status: int
    content_type: str
    retry_after: str | None
    body: bytes


class Face:
    """One service behind one of its faces, everything that was said written down."""

    def __init__(self, sim: Any) -> None:
        self.sim, self.now = sim, START
        self.transcript: list[Exchange] = []

    def recorded(self, send: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            answer = send(request)
            body = answer.read()
            asked = f"{request.method} {request.url.raw_path.decode()} {request.read()!r}"
            headers = answer.headers
            self.transcript.append(
                Exchange(asked, answer.status_code, headers["content-type"], headers.get("retry-after"), body)
            )
            return answer

        return httpx.MockTransport(handle)

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if not isinstance(self.sim, SlackSim):
            self.sim.tick(self.now)


def _vast() -> VastSim:
    return VastSim(rng=random.Random(1), api_key=KEY, intervals=INTERVALS)


def _tensordock() -> TensorDockSim:
    return TensorDockSim(rng=random.Random(1), api_key=KEY)


MARKETS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "vast": (Vast, _vast),
    "tensordock": (TensorDock, _tensordock),
}


@pytest.mark.parametrize("name", MARKETS)
def test_both_faces_of_a_market_answer_alike(name: str) -> None:
    adapter, make = MARKETS[name]
    near, far = Face(make()), Face(make())

    _tell(name, adapter, near, "http://market.sim", SimTransport(near).handle_request)
    with _served(far) as url, httpx.HTTPTransport() as loopback:
        _tell(name, adapter, far, url, loopback.handle_request)

    assert far.transcript == near.transcript
    statuses = {exchange.status for exchange in near.transcript}
    assert {200, 400, 401, 404, 429} <= statuses, statuses


def _tell(
    name: str, adapter: Callable[..., Any], face: Face, url: str, send: Callable[[httpx.Request], httpx.Response]
) -> None:
    """A life of a machine through the adapter, a wrong key, what no adapter sends, and more than the limits allow."""
    waiting = {"wait": face.after} if adapter is Vast else {}
    transport = face.recorded(send)
    with httpx.Client(base_url=url, transport=transport, headers={"Authorization": f"Bearer {KEY}"}) as raw:
        market: Market = adapter(KEY, base_url=url, transport=transport, **waiting)
        _live(market, face)
        _in_vain(adapter("wrong", base_url=url, transport=transport, **waiting).list)
        for method, target, body in RAW[name]:
            face.after(BOOTED_S)
            raw.request(method, target, content=body.encode())
        for _ in range(HURRIED):
            _in_vain(market.list)


def _live(market: Market, face: Face) -> None:
    offer = market.search(Wanted(gpu="RTX 4090", disk_gb=64))[0]
    launch = Launch(label="one", image="i", disk_gb=64, env={"A": "it's b"}, start_script="echo up\n")
    id = market.create(offer, launch)
    face.after(BOOTED_S)
    assert [row.status for row in market.list()] == ["running"]
    face.sim.outbid(face.sim.contract_of("one"), face.now)
    assert market.get(id)
    market.credit_usd()
    face.after(BOOTED_S)
    market.destroy(id)
    face.after(BOOTED_S)
    market.destroy(id)
    assert market.get(id) is None
    market.charges(START, START + HOUR)
    face.after(BOOTED_S)


def test_both_faces_of_googles_compute_engine_answer_alike() -> None:
    near, far = (Face(ComputeSim(rng=random.Random(1), key_id=KEY, requests_per_minute=60)) for _ in range(2))

    _rent_standbys(near, "http://google.sim")
    with _served(far) as url, httpx.HTTPTransport() as loopback:
        _rent_standbys(far, url, loopback.handle_request)

    assert far.transcript == near.transcript
    assert {200, 400, 401, 403, 404, 409} <= {exchange.status for exchange in near.transcript}


def _rent_standbys(face: Face, url: str, send: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
    """A standby's life through Google's own client, which speaks `requests`; what is refused; what nobody sends."""
    transport = face.recorded(send or SimTransport(face).handle_request)
    with httpx.Client(base_url=url, transport=transport) as wire:
        gcp = GcpCompute(service_account_key(KEY), base_url=url, carrier=Carrier(lambda asked: _passed_on(wire, asked)))
        wrong = GcpCompute(
            service_account_key("wrong"), base_url=url, carrier=Carrier(lambda asked: _passed_on(wire, asked))
        )
        _live_as_a_standby(gcp, face)
        _in_vain(wrong.list)
        for method, target, body in RAW_OF_GOOGLE:
            raw = Request(method, target, {}, {"Authorization": f"Bearer {_token(KEY)}"}, body.encode())
            _passed_on(wire, raw)
        for _ in range(HURRIED):
            _in_vain(gcp.addresses)


def _live_as_a_standby(gcp: GcpCompute, face: Face) -> None:
    offer = standby_offer(Terms(zone="us-east1-b"))
    launch = Launch(label="dumont-a-b-1-00000000", image="", disk_gb=30, env={"A": "it's b"}, start_script="echo up\n")
    gcp.reserve("dumont-a-b", "us-east1")
    face.after(BOOTED_S)
    address = gcp.reserve("dumont-a-b", "us-east1")
    id = gcp.create(offer, replace(launch, address=address.ip))
    _in_vain(lambda: gcp.create(offer, replace(launch, label="dumont-a-b-2-00000000", address="198.51.100.7")))
    face.after(BOOTED_S)
    face.sim.book.request_ids.clear()
    _in_vain(lambda: gcp.create(offer, launch))
    assert [row.status for row in gcp.list()] == ["running"]
    _in_vain(lambda: gcp.release("dumont-a-b", "us-east1"))
    face.sim.outbid(id, face.now)
    face.after(60)
    gcp.operation(gcp.start(id))
    face.after(BOOTED_S)
    assert [work.kind for work in gcp.operations(id)] == ["start", "preempted", "insert"]
    face.sim.quota(0)
    _in_vain(lambda: gcp.create(offer, replace(launch, label="dumont-a-b-3-00000000")))
    gcp.destroy(id)
    face.after(BOOTED_S)
    gcp.destroy(id)
    assert gcp.get(id) is None
    gcp.release("dumont-a-b", "us-east1")
    face.after(BOOTED_S)


def _passed_on(wire: httpx.Client, asked: Request) -> Answer:
    kept = {name: value for name, value in asked.headers.items() if name.lower() in ("authorization", "content-type")}
    said = wire.request(asked.method, asked.path, params=asked.query or None, headers=kept, content=asked.body)
    return Answer(said.status_code, said.content, said.headers["content-type"])


def _token(key_id: str) -> str:
    """The head of a token is all that the simulated Google reads."""
    return base64.urlsafe_b64encode(json.dumps({"kid": key_id}).encode()).decode() + ".x.x"


def test_both_faces_of_slack_answer_alike() -> None:
    near, far = (Face(SlackSim(random.Random(1), TOKEN, "secret", base_url=LOOPBACK)) for _ in range(2))

    _talk(near, LOOPBACK, SimTransport(near).handle_request)
    with _served(far) as url, httpx.HTTPTransport() as loopback:
        _talk(far, url, loopback.handle_request)

    assert far.transcript == near.transcript
    assert {200, 400, 404, 429} <= {exchange.status for exchange in near.transcript}
    refused = b" ".join(exchange.body for exchange in near.transcript)
    for error in (
        "invalid_auth",
        "invalid_blocks",
        "message_not_found",
        "channel_not_found",
        "used_url",
        "expired_url",
    ):
        assert error.encode() in refused, error


def _talk(face: Face, url: str, send: Callable[[httpx.Request], httpx.Response]) -> None:
    """What our adapter says, in every tone; then what it never does."""
    transport = face.recorded(send)
    slack = Slack(TOKEN, base_url=f"{url}/api", loopback_allowed=True, transport=transport)
    hello = blocks.message("hello", [blocks.section("hello é")])
    too_long = {"text": "x", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}]}

    def response_url() -> str:
        made: str = face.sim.new_response_url(user="U0ADA00001", channel=CHANNEL, now=face.now)
        return url + made.removeprefix(LOOPBACK)

    channel, ts = slack.post("U0ADA00001", hello)
    _in_vain(lambda: slack.post("U0ADA00001", hello))  # within the same second
    slack.update(channel, ts, hello)
    _in_vain(lambda: slack.update(channel, "1.1", hello))
    face.after(1.0)
    _in_vain(lambda: slack.post("#general", hello))
    _in_vain(lambda: slack.post(CHANNEL, too_long))
    _in_vain(lambda: Slack("wrong", base_url=f"{url}/api", transport=transport).post(CHANNEL, hello))
    used = response_url()
    for number in range(RESPONSE_URL_USES + 1):
        _in_vain(lambda number=number: slack.respond(used, {**hello, "replace_original": number > 0}))
    _in_vain(lambda: slack.respond(response_url(), too_long))
    late = response_url()
    face.after(RESPONSE_URL_FOR.total_seconds())
    _in_vain(lambda: slack.respond(late, hello))
    with httpx.Client(base_url=url, transport=transport, headers={"Authorization": f"Bearer {TOKEN}"}) as raw:
        raw.get(used.removeprefix(url))
        for method, target, body in RAW_OF_SLACK:
            raw.request(method, target, content=body.encode())


def _in_vain(call: Callable[[], object]) -> None:
    try:
        call()
    except DumontError:
        return


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@contextmanager
def _served(face: Face) -> Iterator[str]:
    wsgi = HttpFace(face.sim, clock=lambda: face.now, lock=threading.Lock())
    server = make_server("127.0.0.1", 0, wsgi, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
