"""The agent on its machine: the environment, the control plane over HTTP, the marketplace's stop, and the loop.

httpx is loaded where it is first needed: it takes as long as all the rest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pydantic import ValidationError

from common.domain.host import Attest, Heartbeat, Reply
from common.errors import NotFound
from common.host import access, attest, tunnel
from common.host.agent import Agent
from common.host.around import Refused, Unanswered
from common.host.life import Life
from common.host.ports import ports_of
from common.host.programs import GpuPrograms, Programs, StandbyUsers
from common.host.samples import Looks
from common.host.writers import Processes, Users

if TYPE_CHECKING:
    import httpx

TIMEOUT_S, CONNECT_TIMEOUT_S = 20.0, 5.0


class HttpControl:
    """The control plane over HTTP. `http` can be swapped for a client with another transport."""

    def __init__(self, url: str, http: httpx.Client | None = None) -> None:
        self._http = http or _client(url)

    def beat(self, heartbeat: Heartbeat, token: str) -> Reply:
        import httpx

        try:
            answer = self._http.post("/heartbeat", content=heartbeat.model_dump_json(), headers=_headers(token))
            if answer.status_code == NotFound.status and _code_of(answer) == NotFound.code:
                raise Refused(answer.text[:200])
            answer.raise_for_status()
            return Reply.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise Unanswered(str(error)) from error

    def notice(self, label: str, reason: str, token: str) -> None:
        import httpx

        try:
            self._http.post("/failover", json={"label": label, "reason": reason}, headers=_headers(token), timeout=2.0)
        except httpx.HTTPError:
            return


def _client(url: str = "") -> httpx.Client:
    """Through the proxies that the image's environment names, unless httpx can make nothing of them."""
    import httpx

    timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    try:
        return httpx.Client(base_url=url, timeout=timeout)
    except (ImportError, ValueError, httpx.InvalidURL):  # of SOCKS, or what NO_PROXY may hold
        return httpx.Client(base_url=url, timeout=timeout, trust_env=False)


def _code_of(answer: httpx.Response) -> str | None:
    """Of a problem of ours. None: somebody in front of the functions answered, who knows nothing of rentals."""
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return None


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def stop_machine() -> None:
    """Stop this machine at its marketplace with the container's own key, which may do no more than that."""
    import httpx

    contract, key = os.environ.get("CONTAINER_ID"), os.environ.get("CONTAINER_API_KEY")
    if not (contract and key):
        return
    url = f"{os.environ.get('VAST_URL', 'https://console.vast.ai')}/api/v0/instances/{contract}/"
    try:
        with _client() as http:
            http.put(url, json={"state": "stopped"}, headers={"Authorization": f"Bearer {key}"})
    except httpx.HTTPError:
        return


class Measurement:
    """The measurement in a thread of its own, so that the heartbeat never waits for the probe of the line."""

    def __init__(self, machine_file: Path | None, workspace: Path, *, download_url: str | None, upload_url: str | None):
        self._done: list[Attest] = []
        self._thread = threading.Thread(target=self._measure, daemon=True, name="attest")
        self._machine_file, self._workspace = machine_file, workspace
        self._urls = {"download_url": download_url, "upload_url": upload_url}

    def __call__(self) -> Attest | None:
        """What was measured; None until then."""
        if self._thread.ident is None:
            self._thread.start()
        return self._done[0] if self._done else None

    def _measure(self) -> None:
        import httpx

        seen = Attest()
        try:
            seen = attest.hardware(self._machine_file, self._workspace)
            with httpx.Client(trust_env=False) as http:
                seen = attest.line(seen, http, clock=time.monotonic, **self._urls)
        finally:
            self._done.append(seen)  # whatever went wrong, what could not be measured is unknown


def serve() -> None:
    env = os.environ
    home = Path(env.get("DUMONT_HOME", "/opt/dumont"))
    gpu_file, machine_file = env.get("DUMONT_GPU_FILE"), env.get("DUMONT_MACHINE_FILE")
    workspace = Path(env.get("DUMONT_WORKSPACE", "/workspace"))
    control = HttpControl(env["DUMONT_URL"])
    programs = _programs(env, home)
    users: Users = Processes(init=int(env.get("DUMONT_INIT_PID", "1")), spared=programs.pids)
    if env.get("DUMONT_KIND") == "standby":
        users = StandbyUsers(home)
    agent = Agent(
        label=env["DUMONT_LABEL"],
        home=home,
        workspace=workspace,
        control=control,
        writers=users,
        looks=Looks(gpu_file=Path(gpu_file) if gpu_file else None, has_gpu=env.get("DUMONT_KIND") != "standby"),
        life=Life(users.users, home),
        stop_machine=stop_machine,
        programs=programs,
        authorize=partial(access.authorize, Path.home()),
        measure=Measurement(
            Path(machine_file) if machine_file else None,
            workspace,
            download_url=env.get("DUMONT_BUNDLE_URL"),
            upload_url=env.get("DUMONT_PROBE_URL"),
        ),
    )

    def on_stop(_signal: int, _frame: FrameType | None) -> None:
        programs.farewell()
        control.notice(agent.label, "the container is being stopped", agent.memory.token)
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_stop)
    now = steady_clock()
    while agent.step(now()):
        time.sleep(agent.wait_s(now()))


def _programs(env: Mapping[str, str], home: Path) -> Programs:
    """Of a standby, whose programs its `standby` keeps; else of a GPU host."""
    if env.get("DUMONT_KIND") == "standby":
        from common.host import standby

        return standby.programs_of(standby.setting_of(env))
    ports, label = ports_of(env), env["DUMONT_LABEL"]
    keys = env.get("DUMONT_AUTHORIZED_KEYS", tunnel.USER_KEYS)
    workspace = Path(env.get("DUMONT_WORKSPACE", "/workspace"))
    return GpuPrograms(home, label, ports, time.monotonic, workspace, keys)


def steady_clock() -> Callable[[], datetime]:
    """The host's time at the start of the agent, and seconds since: nobody who sets the clock changes a duration."""
    began, began_s = datetime.now(UTC), time.monotonic()
    return lambda: began + timedelta(seconds=time.monotonic() - began_s)
