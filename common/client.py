"""A small client of the REST API: JSON in, JSON out, problems as one typed error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
SETTLED = frozenset({"succeeded", "failed"})
TURNS_MAX = 4
"""So often a call is made again for which a marketplace has no turn: a definite refusal, nothing was done."""
TURN_WITHIN_S = 30
"""Who is told to wait longer is told so, and decides."""
PATH = re.compile(r"(/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)+")
"""Of the API: an id with other characters is nobody's, and must not lead to another path."""


class ApiProblem(Exception):
    """The API said no; `code` is stable, str() is a sentence. `status` 0 = nobody answered; `turn_in_s` 0 = it has no
    turn at a marketplace to wait for."""

    def __init__(self, status: int, code: str, detail: str, turn_in_s: float = 0.0) -> None:
        super().__init__(detail)
        self.status, self.code, self.turn_in_s = status, code, turn_in_s


class Client:
    def __init__(
        self,
        url: str,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        *,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        """`wait` = so many seconds, for a turn at a marketplace; None = be told of it at once.

        Raises `ApiProblem` for an address or a token that cannot be one.
        """
        self._url, self._wait = url, wait
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            self._http = httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=TIMEOUT, transport=transport)
        except UnicodeError:
            raise ApiProblem(401, "unauthenticated", "this token is not valid") from None
        except httpx.InvalidURL as error:
            raise ApiProblem(0, "unreachable", f"{url} is no address: {error}") from None

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """Raises `ApiProblem`."""
        return self._call("GET", path, params={name: value for name, value in query.items() if value is not None})

    def post(self, path: str, body: dict[str, Any] | None = None, *, key: str | None = None) -> Any:
        """`key` = Idempotency-Key. Raises `ApiProblem`."""
        return self._call("POST", path, json=body or {}, headers={"Idempotency-Key": key} if key else {})

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("PATCH", path, json=body)

    def put(self, path: str, body: dict[str, Any]) -> Any:
        """Raises `ApiProblem`."""
        return self._call("PUT", path, json=body)

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def follow(
        self,
        operation: dict[str, Any],
        *,
        sleep: Callable[[float], None],
        show: Callable[[dict[str, Any]], None],
        polls: int,
    ) -> dict[str, Any]:
        """Ask until it settles, at most `polls` times a second apart. Raises `ApiProblem`."""
        for _ in range(polls):
            operation = self.get(f"/operations/{operation['id']}")
            show(operation)
            if operation["status"] in SETTLED:
                return operation
            sleep(1.0)
        raise ApiProblem(0, "still_running", f"{operation['kind']} still runs; look again with: dumont instances show")

    def _call(self, method: str, path: str, **more: Any) -> Any:
        if not PATH.fullmatch(path):
            raise ApiProblem(404, "not_found", f"there is no {path.lstrip('/')}")
        for _ in range(TURNS_MAX):
            try:
                return self._once(method, path, **more)
            except ApiProblem as problem:
                if self._wait is None or not 0 < problem.turn_in_s <= TURN_WITHIN_S:
                    raise
                self._wait(problem.turn_in_s)
        return self._once(method, path, **more)

    def _once(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise ApiProblem(0, "unreachable", f"nobody answers at {self._url} ({type(error).__name__})") from error
        if answer.status_code == 204:
            return None
        try:
            body = answer.json()
        except ValueError:
            raise ApiProblem(
                answer.status_code, "not_json", f"{self._url} answered {answer.status_code}, not JSON"
            ) from None
        if answer.is_success:
            return body
        code, pause = body.get("code", "problem"), answer.headers.get("Retry-After", "")
        turn_in_s = float(pause) if code == "throttled" and pause.isdecimal() else 0.0
        raise ApiProblem(answer.status_code, code, body.get("detail", answer.reason_phrase), turn_in_s)
