"""The Google interfaces that a deployment uses, as one state machine: request in, answer out, `now` passed in.

Slow operations, interfaces that are off, accounts that are not known everywhere at once, quotas, builds that fail,
stale listings. No clock, no thread, no socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from infra.demo.wire import Answer, Request, json_answer, json_body

if TYPE_CHECKING:
    from infra.demo.gcp.compute import ComputeSim

Handler = Callable[["Ask"], Any]
TOKEN_PATH = "/token"
"""Where a service account's key is exchanged for a token: the key file names it."""


class Refused(Exception):
    """An answer that is not 2xx, in Google's error format."""

    def __init__(self, status: int, code: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.status, self.code, self.details = status, code, details

    def answer(self) -> Answer:
        error = {"code": self.status, "message": str(self), "status": self.code}
        return json_answer(self.status, {"error": error | ({"details": self.details} if self.details else {})})


@dataclass(frozen=True)
class Ask:
    """One request, with what its path named."""

    method: str
    names: Mapping[str, str]
    body: dict[str, Any]
    query: Mapping[str, str]
    raw: bytes
    now: datetime


@dataclass
class Slow:
    """A long operation: `finish` is called once, when its time has come; it may raise `Refused`."""

    name: str
    until: datetime
    finish: Callable[[datetime], Any]
    response: Any = None
    error: dict[str, Any] | None = None
    done: bool = False

    def shown(self) -> dict[str, Any]:
        if not self.done:
            return {"name": self.name, "done": False}
        if self.error:
            return {"name": self.name, "done": True, "error": self.error}
        return {"name": self.name, "done": True, "response": self.response}


@dataclass
class Trouble:
    """The next `times` requests that fit are refused, before anything is done."""

    method: str
    path: str
    """A regular expression, searched in the path."""
    refused: Refused
    times: int = 1


class Routes:
    """Paths with {names} and what answers them. The first route that fits is taken."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], str | None, Handler]] = []

    def on(self, method: str, path: str, handler: Handler, *, api: str | None) -> None:
        """`api` = the interface that must be on."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/:]+)", re.escape(path))
        pattern = re.sub(r"\\{(\w+)=\\\*\\\*\\}", r"(?P<\1>.+)", pattern)
        self._routes.append((method, re.compile(pattern + r"\Z"), api, handler))

    def find(self, method: str, path: str) -> tuple[str | None, Handler, dict[str, str]] | None:
        """(api, handler, what the path named)."""
        for known, pattern, api, handler in self._routes:
            if known == method and (match := pattern.match(path)):
                return api, handler, match.groupdict()
        return None


class GoogleSim(Routes):
    """One project. What each interface does is added by `infra.demo.gcp.{project,database,code,network}`."""

    compute: ComputeSim
    """Its machines and addresses."""

    def __init__(self, project: str, region: str, *, operation_s: float = 12, settle_s: float = 4) -> None:
        super().__init__()
        self.project, self.region = project, region
        self.operation_s, self.settle_s = operation_s, settle_s
        self.calls: list[tuple[str, str]] = []
        """(method, path) of every request."""
        self.trouble: list[Trouble] = []
        self.operations: dict[str, Slow] = {}
        self.enabled: dict[str, datetime] = {}
        """Interface -> since when it is on."""
        self.state: dict[str, dict[str, Any]] = {}
        """Table -> name -> row, for the interfaces."""
        token = {"access_token": "simulated", "expires_in": 3600, "token_type": "Bearer"}
        self.on("POST", TOKEN_PATH, lambda _: token, api=None)

    def table(self, name: str) -> dict[str, Any]:
        return self.state.setdefault(name, {})

    def handle(self, request: Request, now: datetime) -> Answer:
        self.calls.append((request.method, request.path))
        self.tick(now)
        try:
            self._refuse(request)
            found = self._route(request, now)
            return json_answer(200, found)
        except Refused as refused:
            return refused.answer()

    def tick(self, now: datetime) -> None:
        """Operations whose time has come end."""
        self.compute.tick(now)
        for slow in list(self.operations.values()):
            if not slow.done and now >= slow.until:
                slow.done = True
                try:
                    slow.response = slow.finish(now) or {}
                except Refused as refused:
                    slow.error = {"code": 9, "message": str(refused)}

    def slow(self, name: str, now: datetime, finish: Callable[[datetime], Any], *, factor: float = 1) -> dict[str, Any]:
        """Begin an operation; `factor` times the usual duration."""
        operation = Slow(name, now + timedelta(seconds=self.operation_s * factor), finish)
        self.operations[name] = operation
        return operation.shown()

    def numbered(self, prefix: str) -> str:
        """A name for a new operation."""
        return f"{prefix}/operations/op-{len(self.operations) + 1}"

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that changed something or tried to; reads of a policy by POST are none."""
        return [(method, path) for method, path in self.calls if method != "GET" and not path.endswith(":getIamPolicy")]

    def _refuse(self, request: Request) -> None:
        if request.path == TOKEN_PATH:
            return
        if not (request.authorization or "").startswith("Bearer "):
            raise Refused(401, "UNAUTHENTICATED", "Request is missing required authentication credential.")
        for trouble in self.trouble:
            fits = trouble.method == request.method and re.search(trouble.path, request.path)
            if fits and trouble.times > 0:
                trouble.times -= 1
                raise trouble.refused

    def _route(self, request: Request, now: datetime) -> Any:
        found = self.find(request.method, request.path)
        if found is None:
            raise Refused(404, "NOT_FOUND", f"no such method: {request.method} {request.path}")
        api, handler, names = found
        self._demand(api, now)
        body = {} if "/upload/" in request.path or request.path == TOKEN_PATH else json_body(request)
        if body is None:
            raise Refused(400, "INVALID_ARGUMENT", "Invalid JSON payload received.")
        return handler(Ask(request.method, names, body, request.query, request.body, now))

    def _demand(self, api: str | None, now: datetime) -> None:
        """An interface that was just switched on is not known everywhere for a while."""
        since = self.enabled.get(api) if api else None
        if api and (since is None or now - since < timedelta(seconds=self.settle_s)):
            sentence = f"{api}.googleapis.com has not been used in project {self.project} before or it is disabled."
            raise Refused(403, "PERMISSION_DENIED", sentence, [{"reason": "SERVICE_DISABLED"}])


def there(table: Mapping[str, Any], name: str) -> Any:
    """The row; a 404 when there is none."""
    if name not in table:
        raise Refused(404, "NOT_FOUND", f"{name} was not found.")
    return table[name]


def not_there(table: Mapping[str, Any], name: str) -> None:
    if name in table:
        raise Refused(409, "ALREADY_EXISTS", f"{name} already exists.")
