"""The programs of a standby: their settings, whom they hold together, and the claim on its way."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.domain.role import Claim
from common.domain.version import Version
from common.host import pair, standby, tunnel
from common.host.ports import Ports
from common.host.watchdog import poster

ROOT = Path(__file__).resolve().parents[3]
LABEL = "dumont-d-i-2-bbbbbbbb"
CLAIM = Claim(epoch=3, version=Version(epoch=2, seq=17))


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"DUMONT_LABEL": LABEL},
        {"DUMONT_LABEL": LABEL, "DUMONT_URL": "http://x", "DUMONT_PORTS": "{"},
        {"DUMONT_LABEL": LABEL, "DUMONT_URL": "http://x", "DUMONT_LEASE_S": "soon"},
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named_and_nothing_starts(
    env: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert standby.command(["standby"], env) == 2
    assert capsys.readouterr().err.startswith("dumont-host standby: ")


def test_settings_are_those_of_the_environment() -> None:
    env = {"DUMONT_LABEL": LABEL, "DUMONT_URL": "http://x", "DUMONT_LEASE_S": "1.5", "DUMONT_PROGRAMS": "haproxy,agent"}

    setting = standby.setting_of(env)

    assert (setting.label, setting.ports, setting.fixed_lease_s) == (LABEL, Ports(), 1.5)
    assert setting.only == ("haproxy", "agent")


def test_before_anybody_is_known_nobody_may_dial_in(tmp_path: Path) -> None:
    setting = standby.setting_of(
        {
            "DUMONT_LABEL": LABEL,
            "DUMONT_URL": "http://x",
            "DUMONT_HOME": str(tmp_path),
            "DUMONT_WORKSPACE": str(tmp_path),
        }
    )
    words = standby.prepare(setting)

    assert set(words) == {"haproxy", "tunnel-sshd", "users", "watchdog", "agent"}
    assert set(standby.sync_words(setting)) == {"livesync-receive"}
    assert (tmp_path / tunnel.AUTHORIZED).read_text() == ""
    assert (tmp_path / tunnel.HOST_KEY).stat().st_mode & 0o077 == 0
    tunnel.write_keys(tmp_path, "somebody\n")
    standby.prepare(setting)
    assert (tmp_path / tunnel.AUTHORIZED).read_text() == "somebody\n"


def test_who_writes_itself_sends_to_its_candidate_and_receives_nothing(tmp_path: Path) -> None:
    env = {"DUMONT_LABEL": LABEL, "DUMONT_URL": "http://x", "DUMONT_HOME": str(tmp_path)}
    setting = standby.setting_of(env)

    pair.keep(tmp_path, pair.Kept(label=LABEL, rev=1, epoch=4, writer=LABEL, standby=LABEL))
    assert standby.sync_words(setting) == {}
    pair.keep(
        tmp_path, pair.Kept(label=LABEL, rev=2, epoch=4, writer=LABEL, standby=LABEL, cand="dumont-d-i-9-cccccccc")
    )
    (words,) = standby.sync_words(setting).values()
    assert "livesync-send" in words
    assert tunnel.address_of("dumont-d-i-9-cccccccc") in words


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_a_users_session_leaves_behind_stays_below_their_root() -> None:
    session = "setsid sh -c 'sleep 600 >/dev/null 2>&1 & echo $!'; exec sleep 601"
    words = [sys.executable, "-m", "common.host.main", "users", "/bin/sh", "-c", session]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as root:
        assert root.stdout
        left = int(root.stdout.readline())
        ends_s = time.monotonic() + 10
        while parent_of(left) != root.pid:
            assert time.monotonic() < ends_s
        root.send_signal(signal.SIGTERM)
        assert root.wait(10) != 0
    subprocess.run(["kill", "-9", str(left)], check=True)


class Heard:
    def __init__(self, status: int) -> None:
        self.bodies: list[dict[str, Any]] = []
        heard = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(("status", "is_taken"), [(202, True), (409, False), (401, False), (503, False)])
def test_a_claim_is_taken_when_the_control_plane_says_so(tmp_path: Path, status: int, is_taken: bool) -> None:
    (tmp_path / "state.json").write_text('{"token": "t"}')
    control = Heard(status)
    try:
        assert asyncio.run(_posted(tmp_path, control.url)) is is_taken
    finally:
        control.close()
    assert control.bodies[0]["claim"] == {"epoch": 3, "version_epoch": 2, "version_seq": 17}


@pytest.mark.parametrize("state", [None, "", "{", "[]", "{}"])
def test_without_a_token_or_a_control_plane_it_is_not_taken_and_nothing_breaks(
    tmp_path: Path, state: str | None
) -> None:
    if state is not None:
        (tmp_path / "state.json").write_text(state)

    assert asyncio.run(_posted(tmp_path, "http://127.0.0.1:9")) is False


async def _posted(home: Path, url: str) -> bool:
    return await poster(home, url, LABEL)(CLAIM)
