"""The control plane as it is deployed, on this machine: one process per function from the unpacked archive.

Each runs in the clean environment under functions-framework, with the settings and the token of Cloud Scheduler that a
deployed function gets. What Google does around them is done here: the addresses, the schedules, the keys.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from werkzeug.serving import WSGIRequestHandler, make_server

from common import bootstrap
from common.topology import FUNCTIONS, RIGHTS, SCHEDULES, Function, Schedule
from infra.deploy import archive, runtime
from infra.local.ports import free_ports

ACCOUNT = "dumont-scheduler@local.iam.gserviceaccount.com"
KEYS_PATH = "/google/keys"
KEY_ID = "local"
TOKEN_FOR = timedelta(hours=1)
UP_WITHIN_S = 50.0
POLL_S = 0.05
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive")


class Deployed:
    """The functions' processes; they end with this one."""

    def __init__(self, env: Mapping[str, str], port: int, folder: Path) -> None:
        self._python = runtime.environment()
        self._source = runtime.unpack(archive.build(), folder / "deployed", self._python)
        self._env, self._url, self._logs = dict(env), f"http://127.0.0.1:{port}", folder / "logs"
        self.ports = dict(zip(FUNCTIONS, free_ports(len(FUNCTIONS)), strict=True))
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._logs.mkdir(exist_ok=True)
        self._processes = [self._run(row, port) for row, port in self.ports.items()]
        for process, port in zip(self._processes, self.ports.values(), strict=True):
            deadline = time.monotonic() + UP_WITHIN_S
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{process.args!r} did not start; see {self._logs}")
                time.sleep(POLL_S)

    def alive(self) -> bool:
        return all(process.poll() is None for process in self._processes)

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _run(self, row: Function, port: int) -> subprocess.Popen[bytes]:
        with open(self._logs / f"{row.name}.log", "ab") as log:
            return subprocess.Popen(
                command(self._python, row, port),
                cwd=self._source,
                env=without_secrets_of_others(self._env, row) | function_env(row, self._url) | {"PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def command(python: Path, row: Function, port: int) -> list[str]:
    """How Google's image starts a function."""
    framework = str(python.parent / "functions-framework")
    return [framework, "--target", row.name, "--source", "main.py", "--host", "127.0.0.1", "--port", str(port)]


def without_secrets_of_others(env: Mapping[str, str], row: Function) -> dict[str, str]:
    """What of the common settings a deployed function gets: no secret that its rights do not name."""
    named = {name for right in row.rights for name in RIGHTS[right].secrets}
    others = {name for right in RIGHTS.values() for name in right.secrets} - named
    storage = env.get("STORAGE_PROVIDER", "s3").upper()
    hidden = {name.replace("{STORAGE}", storage) for name in others}
    return {name: value for name, value in env.items() if name not in hidden}


def function_env(row: Function, url: str) -> dict[str, str]:
    """What a deployed function has beside the common settings."""
    return {
        "WORKERS": "1",
        "THREADS": str(row.concurrency),
        "DUMONT_SCHEDULER_ACCOUNT": ACCOUNT,
        "DUMONT_SCHEDULER_AUDIENCE": f"{url}/{row.service}",
        "DUMONT_GOOGLE_KEYS_URL": url + KEYS_PATH,
    }


class Front:
    """One address for all: as Google does, a function sees the path below its own name."""

    def __init__(self, ports: Mapping[Function, int], keys: bytes) -> None:
        self._mounted = sorted(ports.items(), key=lambda item: -len(item[0].path))
        self._keys = keys
        self._http = httpx.Client(timeout=130, limits=httpx.Limits(max_keepalive_connections=0))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == KEYS_PATH:
            start_response("200 OK", [("Content-Type", "application/json"), ("Cache-Control", "max-age=3600")])
            return [self._keys]
        row, port = next((r, p) for r, p in self._mounted if r.path == "/" or f"{path}/".startswith(f"{r.path}/"))
        below = path if row.path == "/" else path[len(row.path) :] or "/"
        return self._forward(port, below, environ, start_response)

    def _forward(self, port: int, path: str, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        headers = {
            name[5:].replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_") and name[5:].lower() not in ("host", "connection")
        }
        headers["Content-Type"] = environ.get("CONTENT_TYPE") or "application/octet-stream"
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        url = f"http://127.0.0.1:{port}{path}"
        if query := environ.get("QUERY_STRING"):
            url += f"?{query}"
        try:
            answer = self._http.request(environ["REQUEST_METHOD"], url, headers=headers, content=body)
        except httpx.HTTPError as error:
            start_response("502 Bad Gateway", [("Content-Type", "text/plain")])
            return [type(error).__name__.encode()]
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
        start_response(f"{answer.status_code} {answer.reason_phrase}", kept)
        return [answer.content]


class Scheduler(threading.Thread):
    """Cloud Scheduler: posts each schedule with a token that Google signed for that function alone."""

    def __init__(self, url: str, key: rsa.RSAPrivateKey, period_s: float) -> None:
        super().__init__(daemon=True, name="scheduler")
        self._url, self._key, self._period_s = url, key, period_s

    def run(self) -> None:
        while True:
            began = time.monotonic()
            for schedule in SCHEDULES:
                self._post(schedule)
            time.sleep(max(0.0, began + self._period_s - time.monotonic()))

    def _post(self, schedule: Schedule) -> None:
        row = next(row for row in FUNCTIONS if row.name == schedule.name)
        token = scheduler_token(self._url, row, self._key, datetime.now(UTC))
        headers = {"Authorization": f"Bearer {token}"}
        try:
            httpx.post(self._url + row.path, headers=headers, timeout=schedule.deadline_s).raise_for_status()
        except httpx.HTTPError as error:
            bootstrap.log("schedule_failed", job=schedule.name, error=str(error))


def scheduler_token(url: str, row: Function, key: rsa.RSAPrivateKey, now: datetime) -> str:
    """What Cloud Scheduler sends along to one function, signed with `key`."""
    claims = {
        "iss": "https://accounts.google.com",
        "aud": f"{url}/{row.service}",
        "email": ACCOUNT,
        "email_verified": True,
        "iat": int(now.timestamp()),
        "exp": int((now + TOKEN_FOR).timestamp()),
    }
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": KEY_ID})


def public_keys(key: rsa.RSAPrivateKey) -> bytes:
    """As Google publishes them."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": KEY_ID}
    return json.dumps({"keys": [public]}).encode()


class Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """The functions have logs of their own."""


def main() -> None:
    port, folder = int(os.environ["DUMONT_PORT"]), Path(os.environ["DUMONT_STATE"])
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DUMONT_LOCAL_TICKER")}
    deployed = Deployed(env, port, folder)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        deployed.end()
        os._exit(0)

    for what in (signal.SIGTERM, signal.SIGINT):
        signal.signal(what, stop)
    deployed.start()
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    front = Front(deployed.ports, public_keys(key))
    server = make_server("127.0.0.1", port, front, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Scheduler(f"http://127.0.0.1:{port}", key, float(os.environ["DUMONT_TICKER_PERIOD_S"])).start()
    print(json.dumps({"message": "deployed_ready", "port": port}), file=sys.stderr, flush=True)
    while deployed.alive():
        time.sleep(POLL_S)
    deployed.end()
    raise SystemExit("a function's process ended")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
