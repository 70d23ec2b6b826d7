"""Ports chosen by `dumont up`: two that start at the same time never choose alike."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from infra.local.ports import BLOCK, BLOCKS, FIRST_PORT, free_ports, fresh_ports

CHOOSE = "from infra.local.ports import free_ports; print(*free_ports(8))"


def test_processes_that_choose_at_the_same_time_do_not_choose_alike() -> None:
    started = [subprocess.Popen([sys.executable, "-c", CHOOSE], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    chosen = [child.communicate(timeout=30)[0].split() for child in started]

    assert [len(ports) for ports in chosen] == [8] * 6
    assert len({port for ports in chosen for port in ports}) == 48


def test_a_block_with_a_listener_is_left_out() -> None:
    first = free_ports(BLOCK)
    with socket.create_server(("127.0.0.1", first[3])):
        assert not set(free_ports(BLOCK)) & set(first)


def test_no_port_is_one_that_the_system_hands_out_itself() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert lowest >= FIRST_PORT + BLOCK * BLOCKS


def test_a_process_that_chooses_again_gets_others_though_nothing_listens_yet() -> None:
    chosen = [port for _ in range(30) for port in fresh_ports(3)]

    assert len(set(chosen)) == 90
