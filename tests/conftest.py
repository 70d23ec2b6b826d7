"""Shared by all tests: nothing reaches beyond loopback, and every test has a home of its own."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import pytest

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
"""The engine forks its workers beside the Firestore clients of other tests: gRPC's fork handlers abort some of them."""

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex


class BeyondLoopback(AssertionError):
    """A test tried to reach another machine."""


def _refuse_beyond_loopback(sock: socket.socket, address: Any) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = address[0]
    if host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return
    raise BeyondLoopback(f"a test tried to connect to {address}")


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(sock: socket.socket, address: Any) -> None:
        _refuse_beyond_loopback(sock, address)
        return _connect(sock, address)

    def connect_ex(sock: socket.socket, address: Any) -> int:
        _refuse_beyond_loopback(sock, address)
        return _connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    return home


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how often the store's contract was proven on each backend, so that a skipped one cannot hide."""
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", []) if "/contract/" in report.nodeid]
    counts = {name: sum(f"[{name}" in nodeid for nodeid in passed) for name in ("sqlite", "firestore", "memory")}
    if passed:
        terminalreporter.write_line("contract: " + ", ".join(f"{name} {n} passed" for name, n in counts.items()))
