"""A simulated service's HTTP face: a WSGI callable around the same state machine that tests use in process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from infra.demo.wire import Request, Simulator


class HttpFace:
    """`lock` is held while the simulator works and while `after` carries out what it decided."""

    def __init__(
        self,
        sim: Simulator,
        *,
        clock: Callable[[], datetime],
        lock: contextlib.AbstractContextManager[Any],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._sim, self._clock, self._lock, self._after = sim, clock, lock, after

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        request = Request(
            method=environ["REQUEST_METHOD"],
            path=environ["PATH_INFO"],
            query=dict(parse_qsl(environ.get("QUERY_STRING", ""))),
            headers={
                name[5:].replace("_", "-").title(): value for name, value in environ.items() if name.startswith("HTTP_")
            },
            body=environ["wsgi.input"].read(length) if length else b"",
        )
        with self._lock:
            answer = self._sim.handle(request, self._clock())
            self._after()
        reason = HTTPStatus(answer.status).phrase
        own = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        headers = [*own, *answer.headers.items()]
        start_response(f"{answer.status} {reason}", headers)
        return [answer.body]
