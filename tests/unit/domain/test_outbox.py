"""Messages: how often they are tried, how they are signed, and where they may go."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
from datetime import UTC, datetime, timedelta

import pytest

from common.domain.outbox import (
    ATTEMPTS_MAX,
    RETRY_MAX_S,
    Kind,
    Message,
    MessageState,
    is_public,
    refusal_of_url,
    signature,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def message() -> Message:
    return Message(
        id="m1",
        account="acme",
        kind=Kind.LOST,
        target="webhook:w1",
        body={"text": "gone"},
        next_at=NOW,
        created_at=NOW,
    )


def test_a_message_is_tried_at_growing_pauses_and_then_is_a_dead_letter() -> None:
    one, now, pauses = message(), NOW, []
    while one.next_at:
        now = one.next_at
        one = one.failed("no answer", now)
        if one.next_at:
            pauses.append((one.next_at - now).total_seconds())

    assert one.state is MessageState.DEAD
    assert one.attempts == ATTEMPTS_MAX
    assert pauses[:4] == [10, 20, 40, 80]
    assert max(pauses) == RETRY_MAX_S
    assert timedelta(hours=4) < now - NOW < timedelta(hours=12)


def test_a_dead_letter_may_be_given_another_life() -> None:
    dead = message().dead("removed", NOW)

    assert dead.next_at is None
    assert dead.again(NOW).state is MessageState.WAITING
    assert dead.again(NOW).next_at == NOW


def test_the_signature_is_what_a_receiver_computes_from_the_time_and_the_raw_body() -> None:
    payload = message().payload()
    header = dict(part.split("=") for part in signature(payload, secret="s", at=NOW).split(","))

    expected = hmac.new(b"s", f"{header['t']}.".encode() + payload, hashlib.sha256).hexdigest()
    assert header["v1"] == expected
    assert int(header["t"]) == int(NOW.timestamp())
    assert json.loads(payload) == {"id": "m1", "kind": "instance.lost", "at": NOW.isoformat(), "text": "gone"}


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://hooks.example.com:8443/",
        "https://user:pw@hooks.example.com/",
        "https://hooks.example.com/#part",
        "https://localhost/",
        "https://intranet/",
        "https://2130706433/",
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fd00::1]/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://100.64.0.1/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "https://",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\n",
        "https://hooks.example.com:abc/",
        "https://[half/",
        "",
        "https://hooks.example.com/" + "x" * 2048,
    ],
)
def test_a_url_that_is_not_https_on_a_public_name_is_refused(url: str) -> None:
    assert refusal_of_url(url, loopback_allowed=False)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com/a?b=c", "https://hooks.example.com:443/", "https://8.8.8.8/"]
)
def test_a_public_https_url_is_taken(url: str) -> None:
    assert refusal_of_url(url, loopback_allowed=False) is None


def test_loopback_is_taken_only_where_a_setting_allows_it() -> None:
    assert refusal_of_url("http://127.0.0.1:9/", loopback_allowed=True) is None
    assert refusal_of_url("http://10.0.0.1:9/", loopback_allowed=True)
    assert refusal_of_url("http://hooks.example.com/", loopback_allowed=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("fe80::1", False),
        ("ff02::1", False),
        ("0.0.0.0", False),
    ],
)
def test_an_address_is_public_only_with_every_address_inside_it(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
