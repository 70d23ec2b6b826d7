"""The guard around the tests themselves."""

import socket

import pytest

from tests.conftest import BeyondLoopback


def test_a_test_cannot_reach_beyond_loopback() -> None:
    with socket.socket() as sock, pytest.raises(BeyondLoopback):
        sock.connect(("192.0.2.1", 80))
