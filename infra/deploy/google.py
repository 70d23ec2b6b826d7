"""One small client of Google's REST interfaces: what it may raise, how long it waits, who it says it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import requests
from google.auth.credentials import Credentials
from google.auth.transport.requests import Request as TokenRequest

CALL_TIMEOUT_S = 30.0
TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 16.0
PAGES_MAX = 100
HOSTS: Mapping[str, str] = {
    name: f"https://{name}.googleapis.com"
    for name in (
        "cloudfunctions",
        "cloudscheduler",
        "cloudresourcemanager",
        "compute",
        "firestore",
        "iam",
        "run",
        "secretmanager",
        "serviceusage",
        "storage",
    )
}
SETTLING = ("does not exist", "SERVICE_DISABLED", "has not been used in project", "try again later", "is not ready")
"""In a refusal: what was made a moment ago is not known everywhere yet, or another change of it is under way."""


class GoogleRefused(Exception):
    """Google said no, definitely; str() is Google's own sentence with what was asked."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason

    @property
    def is_settling(self) -> bool:
        """Worth asking again: another writer was first, or something new is not known everywhere yet."""
        is_new = self.status in (400, 403, 404) and any(words in str(self) for words in SETTLING)
        return is_new or (self.status == 409 and self.reason == "ABORTED")


class GoogleSilent(Exception):
    """No answer, or one of 5xx or 429 after all tries: it may or may not have worked. The next apply finds out."""


@dataclass
class Google:
    """`hosts` = where each interface answers; `pause(seconds)` waits between two looks."""

    project: str
    region: str
    credentials: Credentials
    pause: Callable[[float], None]
    hosts: Mapping[str, str] = field(default_factory=lambda: HOSTS)
    transport: httpx.BaseTransport | None = None
    tries: int = TRIES
    """Of one call, while what was made a moment ago is not known everywhere or nobody answers."""

    def __post_init__(self) -> None:
        self._http = httpx.Client(timeout=CALL_TIMEOUT_S, transport=self.transport)
        self._session = requests.Session()
        self._token_request = TokenRequest(self._session)
        self._closing: list[Callable[[], None]] = [self._http.close, self._session.close]

    def at_close(self, close: Callable[[], None]) -> None:
        """Have something else closed with it."""
        self._closing.append(close)

    def close(self) -> None:
        for close in self._closing:
            close()

    def read(self, host: str, path: str, **query: str) -> dict[str, Any] | None:
        """What is there; None only when Google says 404. Asked again while nobody answers."""
        try:
            return self.patiently(lambda: self._call("GET", host, path, None, query))
        except GoogleRefused as refused:
            if refused.status == 404:
                return None
            raise

    def pages(self, host: str, path: str, items: str, **query: str) -> Iterator[dict[str, Any]]:
        """Every item of a list, all pages. A parent that is not there has none."""
        for _ in range(PAGES_MAX):
            page = self.read(host, path, **query)
            if page is None:
                return
            yield from page.get(items, [])
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = page["nextPageToken"]
        raise GoogleRefused(0, "TOO_MANY", f"{path} has more than {PAGES_MAX} pages")

    def write(
        self, method: str, host: str, path: str, body: Any = None, *, content: bytes | None = None, **query: str
    ) -> dict[str, Any]:
        """One change. Repeated only after a definite refusal that will pass; silence is not repeated but raised."""
        return self.patiently(
            lambda: self._call(method, host, path, body, query, content=content), also_silence=method == "PUT"
        )

    def patiently(self, call: Callable[[], dict[str, Any]], *, also_silence: bool = True) -> dict[str, Any]:
        """At most `tries` times, with pauses that double."""
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(self.tries)):
            try:
                return call()
            except GoogleSilent:
                if not left or not also_silence:
                    raise
            except GoogleRefused as refused:
                if not left or not refused.is_settling:
                    raise
            self.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _call(
        self,
        method: str,
        host: str,
        path: str,
        body: Any,
        query: Mapping[str, str],
        *,
        content: bytes | None = None,
    ) -> dict[str, Any]:
        url, headers = self.hosts[host] + path, {"Content-Type": "application/json"}
        self.credentials.before_request(self._token_request, method, url, headers)  # type: ignore[no-untyped-call]
        sent = content if content is not None else None if body is None else json.dumps(body).encode()
        try:
            answer = self._http.request(method, url, params=dict(query), content=sent, headers=headers)
        except httpx.HTTPError as error:
            raise GoogleSilent(f"{method} {path}: no answer ({type(error).__name__})") from error
        return _answer(method, path, answer.status_code, answer.content)


def _answer(method: str, path: str, status: int, content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content or b"{}")
    except ValueError:
        raise GoogleSilent(f"{method} {path}: {status}, and no JSON") from None
    if status < 300 and isinstance(body, dict):
        return body
    error = body.get("error", {}) if isinstance(body, dict) else {}
    said = f"{method} {path}: {status} {error.get('message', '')}"
    details = json.dumps(error.get("details", ""))
    if status >= 500 or (status == 429 and "quota" not in said.lower()):
        raise GoogleSilent(said)
    raise GoogleRefused(
        status, str(error.get("status", "")), said + (f" {details}" if "SERVICE_DISABLED" in details else "")
    )
