"""A small client of the REST API: JSON in, JSON out, problems as one typed error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx

TIMEOUT = httpx.Timeout(60.0, connect=5.0)
SETTLED = frozenset({"succeeded", "failed"})
PATH = re.compile(r"(/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)+")
"""Of the API: an id with other characters is nobody's, and must not lead to another path."""


class ApiProblem(Exception):
    """The API said no; `code` is stable, str() is a sentence. `status` 0 = nobody answered."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class Client:
    def __init__(self, url: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        """Raises `ApiProblem` for an address or a token that cannot be one."""
        self._url = url
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
        raise ApiProblem(answer.status_code, body.get("code", "problem"), body.get("detail", answer.reason_phrase))
