"""The host's image, built and run for real: the engine by itself, and the agent beside somebody's container."""

from __future__ import annotations

import array
import json
import os
import random
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.domain.host import Heartbeat, HostPhase, Reply, Wanted
from infra.demo.s3_server import S3Server, s3_server
from infra.gpu_host import image as images
from infra.gpu_host.image import ULIMITS, run_command

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
RUN_S = 120
WITHIN_S = 60.0
CONTAINER_UID = 1000
HOST_NETWORK = ("--network", "host")
CHANCE = random.Random(3)
SINGLES = array.array("f", (CHANCE.gauss(0, 0.02) for _ in range(200_000))).tobytes()
WEIGHTS = bytes(byte for place, byte in enumerate(SINGLES) if place % 4 >= 2)
"""bfloat16"""


@pytest.fixture(scope="module")
def image(can_run_containers: None) -> str:
    return images.build()


def run(image: str, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(run_command(image, words, *options), capture_output=True, text=True, timeout=RUN_S)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_it_starts_as_a_user_without_rights_and_says_what_it_can(image: str) -> None:
    shown = run(image)
    assert shown.returncode == 0, shown.stderr
    assert "backup" in shown.stdout
    assert "Exit codes" in shown.stdout

    assert run(image, options=("--entrypoint", '["id", "-u"]')).stdout.strip() == str(CONTAINER_UID)
    wrong = run(image, "bakcup")
    assert wrong.returncode != 0
    assert "no such verb" in wrong.stderr


def test_the_engine_by_itself_backs_up_and_restores(image: str, s3: S3Server, tmp_path: Path) -> None:
    work, copy = tmp_path / "work", tmp_path / "copy"
    for folder in (work, copy):
        folder.mkdir()
        os.chown(folder, CONTAINER_UID, CONTAINER_UID)
    (work / "deep").mkdir()
    (work / "deep/text").write_text("words\n" * 1000)
    (work / "noise").write_bytes(os.urandom(5 << 20))
    (work / "weights").write_bytes(WEIGHTS)
    env = {
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "DUMONT_SNAPSHOT_KEY": "a passphrase",
    }
    options = [*HOST_NETWORK, *(word for name, value in env.items() for word in ("-e", f"{name}={value}"))]
    options += ["-v", f"{work}:/workspace", "-v", f"{copy}:/copy"]
    url = f"s3://{s3.bucket}/box"

    def done(*words: str) -> Any:
        ended = run(image, *words, "--json", options=tuple(options))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    taken = done("backup", "/workspace", url)
    assert taken["files"] == 3
    assert taken["stored_bytes"] < (5 << 20) + 0.7 * len(WEIGHTS), "the compiled half of the engine is not in the image"
    assert done("verify", url)["bytes_read"] > 5 << 20
    assert [row["id"] for row in done("list", url)["snapshots"]] == [taken["snapshot"]]
    done("restore", url, "/copy")

    assert (copy / "deep/text").read_text() == "words\n" * 1000
    assert (copy / "noise").read_bytes() == (work / "noise").read_bytes()
    assert (copy / "weights").read_bytes() == WEIGHTS


class Control:
    """A control plane of one answer, which the test changes; it keeps what it hears."""

    def __init__(self) -> None:
        self.reply = Reply(rev=1, phase_wanted=Wanted.WAIT, epoch=0, token="t", next_in_s=1)
        self.heard: list[Heartbeat] = []

    def until(self, phase: HostPhase) -> None:
        began = time.monotonic()
        while not any(beat.phase is phase for beat in self.heard):
            assert time.monotonic() - began < WITHIN_S, f"never {phase}: {self.heard[-1:]}"
            time.sleep(0.1)


@contextmanager
def answering() -> Iterator[tuple[Control, str]]:
    control = Control()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            control.heard.append(Heartbeat.model_validate_json(body))
            answer = control.reply.model_dump_json().encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield control, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def somebodys_container() -> Iterator[str]:
    """A container whose work is a child of its first process."""
    name = f"dumont-test-{secrets.token_hex(4)}"
    command = run_command(images.base(), ["sh", "-c", "sleep 600 & wait"], "-d", "--name", name)
    subprocess.run(command, capture_output=True, check=True, timeout=RUN_S)
    try:
        yield name
    finally:
        remove = ["podman", *images.STORAGE, "rm", "-f", "-t", "0", name]
        subprocess.run(remove, capture_output=True, check=True, timeout=RUN_S)


def states_in(container: str) -> set[str]:
    """Of the processes that sleep there: R, S, T (held still)."""
    look = "for p in /proc/[0-9]*; do grep -q '^Name:.sleep' $p/status && grep ^State $p/status; done; true"
    command = ["podman", *images.STORAGE, "exec", container, "sh", "-c", look]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=RUN_S).stdout
    return {line.split()[1] for line in shown.splitlines()}


def test_the_agent_beside_a_container_reports_freezes_and_thaws_it_and_ends_when_told(
    image: str, tmp_path: Path
) -> None:
    home, workspace = tmp_path / "home", tmp_path / "workspace"
    home.mkdir()
    workspace.mkdir()
    (home / "token").write_text(json.dumps({"token": "t"}))
    with answering() as (control, url), somebodys_container() as beside:
        env = {"DUMONT_URL": url, "DUMONT_LABEL": "dumont-test-box-1-0a0a0a0a"}
        options = [*HOST_NETWORK, "--pid", f"container:{beside}", "--user", "0"]
        options += [word for name, value in env.items() for word in ("-e", f"{name}={value}")]
        options += ["-v", f"{home}:/var/lib/dumont", "-v", f"{workspace}:/workspace"]
        with subprocess.Popen(run_command(image, ["agent"], *options), stderr=subprocess.PIPE, text=True) as agent:
            try:
                control.until(HostPhase.READY)
                control.reply = control.reply.model_copy(update={"rev": 2, "phase_wanted": Wanted.FREEZE, "fz": "n1"})
                control.until(HostPhase.FROZEN)
                assert "T" in states_in(beside)
                control.reply = control.reply.model_copy(update={"rev": 3, "phase_wanted": Wanted.SERVE, "fz": None})
                began = time.monotonic()
                while "T" in states_in(beside):
                    assert time.monotonic() - began < WITHIN_S
                control.reply = control.reply.model_copy(update={"rev": 4, "phase_wanted": Wanted.STOP})
                assert agent.wait(WITHIN_S) == 0
            finally:
                agent.kill()
    assert control.heard[-1].disk["total_bytes"] > 0


def test_the_limits_are_those_that_a_machine_in_a_machine_may_grant() -> None:
    command = run_command("image", ["backup"], "-e", "X=1")

    assert command[-2:] == ["image", "backup"]
    assert set(ULIMITS) <= set(command)
