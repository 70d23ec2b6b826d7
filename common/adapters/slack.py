"""Slack over HTTPS: chat.postMessage and chat.update with the bot's token, and the response_url of a command or button.

Facts: docs.slack.dev. The Web API answers 200 with {"ok": false, "error": ...} for most refusals, and 429 with
Retry-After for too many calls; a response_url answers 404 once it has expired or was used up.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from common.domain.outbox import is_loopback_name
from common.errors import DeliveryFailed, DeliveryRefused

if TYPE_CHECKING:
    import httpx

TIMEOUT_S, CONNECT_S = 5.0, 3.0
RESPONSE_HOST = "hooks.slack.com"
PASSING = frozenset(
    {
        *("ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout"),
        # an operator mends these: what people should hear waits for it
        *("invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "missing_scope"),
    }
)
"""Errors that another attempt may not meet."""
RETRY_AFTER_MAX_S = 600.0


class Slack:
    """`ports.Chat`. `transport` can be swapped by a test."""

    def __init__(
        self,
        token: str,
        *,
        base_url: str = "https://slack.com/api",
        loopback_allowed: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._token, self._base_url, self._loopback_allowed = token, base_url, loopback_allowed
        self._transport = transport

    @functools.cached_property
    def _http(self) -> httpx.Client:
        """Made when it is first needed: a command is answered without a call."""
        import httpx

        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_S)
        return httpx.Client(timeout=timeout, follow_redirects=False, trust_env=False, transport=self._transport)

    def close(self) -> None:
        if "_http" in vars(self):
            self._http.close()

    def post(self, channel: str, message: Mapping[str, Any]) -> tuple[str, str]:
        posted = self._call("chat.postMessage", {"channel": channel, "unfurl_links": False, **message})
        return str(posted.get("channel", channel)), str(posted.get("ts", ""))

    def update(self, channel: str, ts: str, message: Mapping[str, Any]) -> None:
        self._call("chat.update", {"channel": channel, "ts": ts, **message})

    def respond(self, response_url: str, message: Mapping[str, Any]) -> None:
        if not self._is_slacks(response_url):
            raise DeliveryRefused("this response_url is not Slack's")
        answer = self._send(response_url, message, {})
        if not answer.is_success or _json(answer).get("ok") is False:
            raise DeliveryRefused(f"the response_url answered {answer.status_code}")

    def _is_slacks(self, url: str) -> bool:
        """The signature says that Slack sent it; that we post nowhere else is a second lock."""
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            return False
        if self._loopback_allowed and is_loopback_name(host) and parts.scheme == "http":
            return True
        return parts.scheme == "https" and host == RESPONSE_HOST and parts.netloc == RESPONSE_HOST

    def _call(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._send(f"{self._base_url}/{method}", arguments, {"Authorization": f"Bearer {self._token}"})
        body = _json(answer)
        if answer.is_success and body.get("ok") is True:
            return body
        error = str(body.get("error", f"status {answer.status_code}"))[:100]
        if error in PASSING or "ok" not in body:
            raise DeliveryFailed(f"Slack's {method} answered: {error}")
        raise DeliveryRefused(f"Slack's {method} answered: {error}")

    def _send(self, url: str, content: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        """Raises `DeliveryFailed` for no answer, a server's trouble and too many calls."""
        import httpx

        try:
            answer = self._http.post(url, json=dict(content), headers=dict(headers))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DeliveryFailed(f"Slack did not answer: {type(error).__name__}") from error
        if answer.status_code == 429:
            raise DeliveryFailed("Slack takes no more calls now", retry_after_s=_retry_after_s(answer))
        if answer.status_code >= 500:
            raise DeliveryFailed(f"Slack answered {answer.status_code}")
        return answer


def _json(answer: httpx.Response) -> dict[str, Any]:
    """{} for what is no JSON object."""
    with contextlib.suppress(ValueError):
        body = answer.json()
        return body if isinstance(body, dict) else {}
    return {}


def _retry_after_s(answer: httpx.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_MAX_S) if text.isascii() and text.isdecimal() else 1.0
