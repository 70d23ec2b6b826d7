"""What an answer to a heartbeat says, and what says nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import pytest

from common.domain.host import Heartbeat, HostPhase
from common.errors import NotFound
from common.host.around import Refused, Unanswered
from common.host.serve import HttpControl
from common.web import problem

BEAT = Heartbeat(label="a", sent_at=datetime(2026, 3, 1, tzinfo=UTC), phase=HostPhase.SERVING)


def answered(status: int, body: bytes) -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(status, content=body))
    HttpControl("", httpx.Client(base_url="http://functions.sim", transport=transport)).beat(BEAT, "token")


def test_only_the_functions_themselves_can_say_that_there_is_no_such_rental() -> None:
    with pytest.raises(Refused):
        answered(404, problem.answer(NotFound("there is no rental a")).get_data())


@pytest.mark.parametrize("body", [b"<html>Not Found</html>", b"", b"[]", b'"no"', b'{"code": 5}', b"{}"])
@pytest.mark.parametrize("status", [404, 500, 200])
def test_a_404_of_whoever_stands_in_front_of_them_ends_no_agent(status: int, body: bytes) -> None:
    with pytest.raises(Unanswered):
        answered(status, body)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:1"), ("NO_PROXY", "localhost,::1/128"), ("HTTPS_PROXY", "nonsense://p")],
)
def test_proxies_that_cannot_be_used_end_no_agent(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(Unanswered):
        HttpControl("http://127.0.0.1:9").beat(BEAT, "token")
