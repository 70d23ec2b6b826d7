"""`dumont up`: a small supervisor of two programs, the world and the control plane."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Annotated

import typer

from common import auth, bootstrap
from common.client import ApiProblem, Client
from common.domain.account import Caller, Role
from common.errors import SettingError
from common.workflows import users
from infra.gpu_host import bundle
from infra.local.config import API_PORT, DEMO_TIMING, Local, timing_table

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
RESTARTS_MAX = 200
POLL_S = 0.1
DEFAULT_STATE = ".dumont"
PROGRAMS = {"world": "infra.demo.world", "control": "infra.local.control"}
AS_DEPLOYED = "infra.deploy.local"
"""The control plane of `--as-deployed`."""


def command(
    state: Annotated[Path, typer.Option(help="Directory of this deployment.")] = Path(DEFAULT_STATE),
    port: Annotated[int, typer.Option(help="Of the API on 127.0.0.1; 0 = any free one.")] = API_PORT,
    json_: Annotated[bool, typer.Option("--json", help="One line of JSON on stdout when everything answers.")] = False,
    seed: Annotated[int, typer.Option(help="Of the simulated market.")] = 1,
    store: Annotated[str, typer.Option(help="Another store than a file of this directory.")] = "",
    as_deployed: Annotated[bool, typer.Option("--as-deployed", help="Run the archive that a deploy uploads.")] = False,
    google: Annotated[bool, typer.Option(help="With a simulated Google, so that instances have standbys.")] = True,
) -> None:
    """Run everything on this machine: the simulated world and the control plane."""
    try:
        run(state, port=port, as_json=json_, seed=seed, store_url=store, as_deployed=as_deployed, google=google)
    except SettingError as error:
        print(f"dumont up: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(
    state: Path,
    *,
    port: int,
    as_json: bool,
    seed: int = 1,
    store_url: str = "",
    as_deployed: bool = False,
    google: bool = True,
) -> None:
    """Until SIGTERM or SIGINT; every program it started ends with it. Raises `SettingError`."""
    if os.environ.get("DEMO_MODE", "true").lower() not in ("1", "true", "yes"):
        raise SettingError("DEMO_MODE is off, but dumont up runs a simulated world. Example: DEMO_MODE=true dumont up")
    state = state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    with _only_one(state):
        local = Local.at(
            state,
            port=port,
            timing=DEMO_TIMING,
            seed=seed,
            store_url=store_url,
            as_deployed=as_deployed,
            with_google=google,
        )
        local.with_bundle(bundle.build())
        local.save()
        supervisor = Supervisor(local)
        try:
            supervisor.start()
            _first_admin(local)
            _subscribe(local)
            _announce(local, as_json)
            supervisor.watch()
        finally:
            supervisor.stop()


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    lock = open(state / "up.lock", "a+")  # noqa: SIM115 - held as long as this process lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingError(
            f"another dumont up runs on {state}; stop it, or use another directory: dumont up --state DIR"
        ) from None
    yield
    lock.close()


class Supervisor:
    """Starts what does not run, restarts what dies, ends all it is responsible for."""

    def __init__(self, local: Local) -> None:
        self._local, self._state = local, Path(local.state)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._stopping = False
        (self._state / "logs").mkdir(exist_ok=True)

    def start(self) -> None:
        for what in (signal.SIGTERM, signal.SIGINT):
            signal.signal(what, self._on_stop)
        for name in PROGRAMS:
            if not self._answers(name):
                self._spawn(name)
            if not self._comes_up(name) and not self._stopping:
                tail = (self._state / "logs" / f"{name}.log").read_text()[-1500:]
                raise SystemExit(f"dumont up: {name} did not start; its log ends:\n{tail}")

    def watch(self) -> None:
        """One look every POLL_S: a program that is gone (killed, crashed) is started again."""
        while not self._stopping:
            for name in PROGRAMS:
                if not _alive(self._pid(name)) and not self._stopping:
                    self._restarts += 1
                    if self._restarts > RESTARTS_MAX:
                        raise SystemExit(f"dumont up: {name} died too often; see {self._state / 'logs'}")
                    self._spawn(name)
                    self._comes_up(name)  # one that dies again is started again
            time.sleep(POLL_S)

    def stop(self) -> None:
        for name in reversed(PROGRAMS):
            if pid := self._pid(name):
                _end(pid)

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _spawn(self, name: str) -> None:
        env = os.environ | self._local.control_env() | {"DUMONT_STATE": str(self._state)}
        log: IO[bytes]
        with open(self._state / "logs" / f"{name}.log", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", AS_DEPLOYED if self._deployed(name) else PROGRAMS[name]],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[name] = child
        new = self._state / f"{name}.pid.new"
        new.write_text(str(child.pid))
        new.replace(self._state / f"{name}.pid")  # whoever reads it finds a number

    def _deployed(self, name: str) -> bool:
        return name == "control" and self._local.as_deployed

    def _pid(self, name: str) -> int | None:
        child = self._children.get(name)
        if child is not None:
            return child.pid if child.poll() is None else None
        try:
            return int((self._state / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None

    def _url(self, name: str) -> str:
        ports = {"world": self._local.world_port, "control": self._local.api_port}
        return f"http://127.0.0.1:{ports[name]}/healthz"

    def _answers(self, name: str) -> bool:
        """Running and ours: its pid file names a live process, and its port answers."""
        return _alive(self._pid(name)) and _get(self._url(name))

    def _comes_up(self, name: str) -> bool:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and not self._stopping:
            if _get(self._url(name)):
                return True
            child = self._children.get(name)
            if child is not None and child.poll() is not None:
                break
            time.sleep(POLL_S)
        return False


def _get(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _end(pid: int) -> None:
    """SIGTERM, then SIGKILL after STOP_WITHIN_S."""
    try:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_WITHIN_S
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _first_admin(local: Local) -> None:
    """A new state directory gets an admin and an API key; an old one keeps its own."""
    if local.api_key is not None:
        return
    store, now = bootstrap.store_of(local.store), bootstrap.now()
    bootstrap.deployment_of(store, now)
    user = users.first_admin(store, ids=bootstrap.random_id, email=local.user, password=local.password, now=now)
    caller = Caller(account=user.account, user_id=user.id, role=Role.ADMIN)
    record, local.api_key = auth.new_api_key(
        ids=bootstrap.random_id, caller=caller, name="demo", role=Role.ADMIN, now=now
    )
    users.save_api_key(store, record)
    local.save()


def _subscribe(local: Local) -> None:
    """As a deploy does: the marketplace announces what happens to its machines."""
    api = Client(str(local.facts()["api"]), local.api_key)
    try:
        api.post("/markets/vast/webhook")
    except ApiProblem as problem:  # the reconcile finds the same, a minute later at most
        bootstrap.log("subscribe_failed", error=str(problem))
    finally:
        api.close()


def _announce(local: Local, as_json: bool) -> None:
    if as_json:
        print(json.dumps(local.facts()), flush=True)
        return
    print(f"Dumont Cloud answers at {local.facts()['api']}   (docs: {local.facts()['api']}/docs)", file=sys.stderr)
    print(f"sign in: {local.user}  {local.password}\napi key: {local.api_key}", file=sys.stderr)
    for name, here, production in timing_table(local.timing):
        print(f"  {name:22} {here:>8g} s here   {production:>8g} s in production", file=sys.stderr)


if __name__ == "__main__":
    typer.run(command)
