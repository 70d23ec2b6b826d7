"""The control plane on one port: every function of the table through functions-framework, and a ticker."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import functions_framework
from werkzeug.serving import WSGIRequestHandler, make_server

from common import auth, bootstrap
from common.config import Timing
from common.topology import FUNCTIONS, SCHEDULES, Function, Schedule
from infra.local import kill_points

ROOT = Path(__file__).resolve().parents[2]
SCHEDULER_JOB = "X-CloudScheduler-JobName"
SCHEDULER_TIME = "X-CloudScheduler-ScheduleTime"

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


def dispatcher() -> Wsgi:
    """One WSGI callable over all functions; a function sees the path below its own."""
    mounted = sorted(((row.path, _load(row)) for row in FUNCTIONS), key=lambda item: -len(item[0]))

    def dispatch(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        for prefix, function in mounted:
            if prefix == "/" or path == prefix or path.startswith(prefix + "/"):
                below = path if prefix == "/" else path[len(prefix) :] or "/"
                return function({**environ, "PATH_INFO": below}, start_response)
        raise AssertionError("the api function answers every path")

    return dispatch


def _load(row: Function) -> Wsgi:
    """As Google loads it: by file path, so that no import edge exists."""
    loaded: Wsgi = functions_framework.create_app(row.name, str(ROOT / row.source))  # type: ignore[no-untyped-call]
    return loaded


class Ticker(threading.Thread):
    """Posts the table's schedules with Cloud Scheduler's headers; never two outstanding calls of one job."""

    def __init__(self, url: str, secret: str, timing: Timing) -> None:
        super().__init__(daemon=True, name="ticker")
        self._url, self._secret, self._timing = url, secret, timing

    def run(self) -> None:
        """Every schedule when its period is over; a run that took longer is followed by the next at once."""
        due_at = {schedule: time.monotonic() for schedule in SCHEDULES}
        while True:
            schedule = min(due_at, key=lambda each: due_at[each])
            time.sleep(max(0.0, due_at[schedule] - time.monotonic()))
            due_at[schedule] = time.monotonic() + getattr(self._timing, schedule.period)
            self._post(schedule)

    def _post(self, schedule: Schedule) -> None:
        now = datetime.now(UTC)
        token = auth.scheduler_token(schedule.name, secret=self._secret, now=now)
        headers = {
            "Authorization": f"Bearer {token}",
            SCHEDULER_JOB: schedule.name,
            SCHEDULER_TIME: now.isoformat(),
        }
        request = urllib.request.Request(f"{self._url}/jobs/{schedule.name}", b"", headers)
        try:
            urllib.request.urlopen(request, timeout=schedule.deadline_s).read()
        except (OSError, urllib.error.URLError) as error:
            bootstrap.log("tick_failed", job=schedule.name, error=str(error))


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests are not logged: their paths are in the structured log where they matter."""


def main() -> None:
    port = int(os.environ["DUMONT_PORT"])
    if points := os.environ.get("DUMONT_KILL_POINTS"):
        bootstrap.use(kill_points.wrapped(bootstrap.app(), points.split(","), Path(os.environ["DUMONT_STATE"])))
    app = bootstrap.app()
    server = make_server("127.0.0.1", port, dispatcher(), threaded=True, request_handler=_Quiet)
    Ticker(f"http://127.0.0.1:{port}", app.settings.jwt_secret, app.settings.timing).start()
    print(json.dumps({"message": "control_ready", "port": port}), file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
