"""A message over real HTTP: to the address that was judged, never through a redirect, never to a private one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from common.adapters.courier import HttpCourier
from common.errors import DeliveryFailed, DeliveryRefused


@dataclass
class Receiver:
    """A web server on loopback that answers what the test says."""

    status: int = 204
    location: str | None = None
    port: int = 0
    heard: list[Request] = field(default_factory=list)

    def __call__(self, environ, start):
        request = Request(environ)
        request.get_data()
        self.heard.append(request)
        headers = {"Location": self.location} if self.location else {}
        return Response(b"", self.status, headers)(environ, start)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    server = make_server("127.0.0.1", 0, made)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def post(url: str, courier: HttpCourier | None = None) -> None:
    courier = courier or HttpCourier(loopback_allowed=True)
    try:
        courier.post(url, b'{"a":1}', {"Dumont-Id": "m1", "Content-Type": "application/json"})
    finally:
        courier.close()


def test_a_message_arrives_with_its_headers_and_its_very_bytes(receiver: Receiver) -> None:
    post(f"http://localhost:{receiver.port}/hook?x=1")

    (heard,) = receiver.heard
    assert (heard.method, heard.full_path, heard.get_data()) == ("POST", "/hook?x=1", b'{"a":1}')
    assert heard.headers["Dumont-Id"] == "m1"
    assert heard.host == f"localhost:{receiver.port}"


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_an_answer_that_no_second_attempt_would_change_is_final(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(DeliveryRefused):
        post(f"http://127.0.0.1:{receiver.port}/")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_answer_that_may_change_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.status = status
    with pytest.raises(DeliveryFailed) as caught:
        post(f"http://127.0.0.1:{receiver.port}/")
    assert not isinstance(caught.value, DeliveryRefused)


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.status, receiver.location = 302, f"http://127.0.0.1:{receiver.port}/secret"
    with pytest.raises(DeliveryRefused):
        post(f"http://127.0.0.1:{receiver.port}/")
    assert len(receiver.heard) == 1


def test_nobody_there_is_a_failure_and_not_the_end() -> None:
    with pytest.raises(DeliveryFailed):
        post("http://127.0.0.1:9/")


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:169.254.169.254"], []])
def test_a_name_with_any_private_address_is_not_called(addresses: list[str]) -> None:
    called: list[httpx.Request] = []
    courier = HttpCourier(
        resolve=lambda _host, _port: addresses,
        transport=httpx.MockTransport(lambda request: called.append(request) or httpx.Response(200)),
    )
    with pytest.raises(DeliveryFailed):
        post("https://hooks.example.com/", courier)
    assert called == []


def test_the_call_goes_to_the_address_that_was_judged_and_the_certificate_is_the_names() -> None:
    called: list[httpx.Request] = []
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])  # a name that turns private a moment later
    courier = HttpCourier(
        resolve=lambda _host, _port: next(answers),
        transport=httpx.MockTransport(lambda request: called.append(request) or httpx.Response(200)),
    )
    post("https://hooks.example.com/a", courier)

    assert called[0].url.host == "93.184.216.34"
    assert called[0].headers["Host"] == "hooks.example.com"
    assert called[0].extensions["sni_hostname"] == "hooks.example.com"


def test_without_the_setting_loopback_is_refused_for_good(receiver: Receiver) -> None:
    with pytest.raises(DeliveryRefused):
        post(f"http://127.0.0.1:{receiver.port}/", HttpCourier())
    assert receiver.heard == []
