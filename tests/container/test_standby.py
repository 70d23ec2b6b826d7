"""The standby's image and a GPU host, both real containers: attached by heartbeats alone, frozen, and answered for."""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.domain.host import Heartbeat, Order, Pair, Reply, Wanted
from common.host import notice, tunnel
from infra.gpu_host import image as images
from infra.gpu_host.image import run_command
from infra.local.ports import fresh_ports
from infra.standby import image as standby_image
from tests.pair_world import loopback_ports

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
RUN_S, WITHIN_S = 120, 60.0
KEYS = "/etc/dumont/authorized_keys"
"""In the containers: of who may log in."""
GPU, STANDBY = "dumont-test-box-1-0a0a0a0a", "dumont-test-box-2-0b0b0b0b"


@pytest.fixture(scope="module")
def image(can_run_containers: None) -> str:
    return standby_image.build()


class Record:
    """A control plane of one instance: what it hears from one machine, it tells the other."""

    def __init__(self, host_key: str) -> None:
        self.host_key, self.key = host_key, secrets.token_hex(32)
        self.last: dict[str, Heartbeat] = {}
        self.is_attached = False

    def answer(self, beat: Heartbeat) -> Reply:
        self.last[beat.label] = beat
        door, key = self._of(STANDBY, "door"), self._of(GPU, "tunnel_key")
        pair = Pair(
            epoch=1,
            writer=GPU,
            mirror=STANDBY if self.is_attached else None,
            standby=STANDBY,
            key=self.key,
            door=door if beat.label == GPU else None,
            tunnel_keys={GPU: key} if key and beat.label == STANDBY else {},
            ssh_host_key=self.host_key,
        )
        rev = 2 if self.is_attached else 1
        is_gpu = beat.label == GPU
        restore = Order(id="restore-1", kind="restore", args={"manifest_key": None, "seq": 0})
        wanted = Wanted.SERVE if is_gpu else Wanted.WAIT
        orders = [restore] if is_gpu and not beat.epoch else []
        return Reply(
            rev=rev, phase_wanted=wanted, epoch=1, orders=orders, pair=pair, token=f"t-{beat.label}", next_in_s=0.5
        )

    def _of(self, label: str, name: str) -> Any:
        return getattr(self.last.get(label), name, None)


@contextmanager
def answering(record: Record) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            said = record.answer(Heartbeat.model_validate_json(body)) if self.path == "/heartbeat" else None
            answer = said.model_dump_json().encode() if said else b"{}"
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def until(what: Callable[[], Any], why: str) -> Any:
    ends_s = time.monotonic() + WITHIN_S
    while not (found := what()):
        assert time.monotonic() < ends_s, why
        time.sleep(0.05)
    return found


@contextmanager
def container(image: str, verb: str, home: Path, work: Path, keys: Path, env: dict[str, str]) -> Iterator[str]:
    name = f"dumont-test-{secrets.token_hex(4)}"
    options = ["-d", "--name", name, "--network", "host", "-v", f"{home}:/var/lib/dumont", "-v", f"{work}:/workspace"]
    options += ["-v", f"{keys}:{KEYS}:ro", "-e", f"DUMONT_AUTHORIZED_KEYS={KEYS}"]
    options += [word for one, value in env.items() for word in ("-e", f"{one}={value}")]
    subprocess.run(run_command(image, [verb], *options), capture_output=True, check=True, timeout=RUN_S)
    try:
        yield name
    finally:
        podman("unpause", name, check=False)
        podman("rm", "-f", "-t", "0", name, check=False)


def podman(*words: str, check: bool = True) -> str:
    command = ["podman", *images.STORAGE, *words]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=RUN_S).stdout


def test_a_gpu_host_and_its_standby_find_each_other_and_a_frozen_one_is_answered_for(
    image: str, tmp_path: Path
) -> None:
    ports, sides = loopback_ports(), {}
    tunnel.require_key(tmp_path / "pair_key")
    user_key = tunnel.require_key(tmp_path / "user_key")
    keys = tmp_path / "keys"
    keys.write_text(user_key + "\n")
    keys.chmod(0o600)
    for name in ("gpu", "standby"):
        sides[name] = (tmp_path / name, tmp_path / f"{name}.work")
        for folder in sides[name]:
            folder.mkdir()
        (sides[name][0] / "token").write_text(json.dumps({"token": "t"}))
        (sides[name][0] / "who").write_text(name)
    (sides["gpu"][1] / "saved").write_text(" saved")
    record = Record((tmp_path / "pair_key").read_text())
    with answering(record) as url:
        env = {"DUMONT_URL": url, "DUMONT_PORTS": json.dumps(asdict(ports))}
        more = {"DUMONT_LABEL": STANDBY, "DUMONT_ADDRESS": "127.0.0.1", "DUMONT_LISTEN": "127.0.0.1"}
        more["DUMONT_LEASE_S"] = "1.0"
        own_sync = replace(ports, sync=fresh_ports(1)[0])  # two machines here share one loopback
        of_gpu = {"DUMONT_LABEL": GPU, "DUMONT_PORTS": json.dumps(asdict(own_sync))}
        home = sides["standby"][0]
        with container(image, "standby", *sides["standby"], keys, env | more), container(
            image, "agent", *sides["gpu"], keys, env | of_gpu
        ) as gpu:  # fmt: skip
            until(lambda: record.last.get(GPU) and record.last[GPU].epoch == 1, "the GPU host does not serve")
            until(lambda: record._of(STANDBY, "door"), "the standby names no door")
            until(lambda: record.last[STANDBY].sync.is_whole, "the live sync does not make it whole")
            record.is_attached = True
            until(lambda: notice.read(home).get("is_watched"), "no heartbeat came")
            until(lambda: login(tmp_path, ports.ssh.door_port) == "gpu saved", "the door does not lead to the GPU")

            podman("pause", gpu)
            until(lambda: login(tmp_path, ports.ssh.door_port) == "standby saved", "nobody answered for it")
            claim = until(lambda: record._of(STANDBY, "claim"), "it did not claim")
            assert (claim.epoch, claim.version_epoch) == (1, 1)
            assert claim.version_seq >= 1


def login(folder: Path, port: int) -> str:
    """What the user reads at the door, and no word of warning beside it."""
    host_key = " ".join((folder / "pair_key.pub").read_text().split()[:2])
    (folder / "known").write_text(f"box {host_key}\n")
    options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "HostKeyAlias=box", "ConnectTimeout=3"]
    options += [f"UserKnownHostsFile={folder / 'known'}", "GlobalKnownHostsFile=/dev/null"]
    words = ["ssh", "-F", "/dev/null", "-i", str(folder / "user_key"), "-p", str(port)]
    words += [word for option in options for word in ("-o", option)]
    done = subprocess.run(
        [*words, "root@127.0.0.1", "cat /var/lib/dumont/who /workspace/saved"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    return done.stdout if done.returncode == 0 and not done.stderr else ""
