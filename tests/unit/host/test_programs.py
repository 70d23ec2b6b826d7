"""The programs of a GPU host, as the kernel has them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common import auth
from common.host import tunnel
from common.host.pair import Kept
from common.host.ports import Ports
from common.host.programs import SSHD_AGAIN_S, GpuPrograms

WITHIN_S = 10.0
KEY = auth.ssh_private_key(b"1" * 32)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_another_sshd_that_has_the_number_of_ours_after_a_restart_is_not_taken_for_it(tmp_path: Path) -> None:
    file, seconds = tmp_path / "sshd.pid", [0.0]
    ports = replace(Ports(), ssh=replace(Ports().ssh, gpu_port=free_port()))
    words = ["sh", "-c", "read line", "sshd: root@pts/0"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as others:
        file.write_text(f"{others.pid}\n")
        programs = GpuPrograms(tmp_path, "a", ports, lambda: seconds[0])
        assert tunnel.keep_host_key(tmp_path, KEY)
        programs.follow(Kept(label="a", rev=1, epoch=1, ssh_host_key=KEY))
        until(lambda: b"sshd" in Path(f"/proc/{others.pid}/cmdline").read_bytes())
        programs.tend()
        until(lambda: file.read_text().strip() not in ("", str(others.pid)))  # it writes its number once it has left
        ours = int(file.read_text())
        try:
            seconds[0] += SSHD_AGAIN_S
            programs.tend()
            assert int(file.read_text()) == ours  # and not one more
        finally:
            os.kill(ours, signal.SIGTERM)
            others.kill()
