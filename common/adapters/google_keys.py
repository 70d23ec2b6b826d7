"""The public keys by which Google signs its tokens: fetched once, kept as long as Google says."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from common.errors import Unauthenticated

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 5.0
KEPT_FOR = timedelta(hours=1)
"""Where Google names no time."""
KEPT_AT_MOST = timedelta(hours=24)
AGAIN_AFTER = timedelta(seconds=60)
"""Between two fetches for keys that are not known: so that invented ids make no calls."""


class GoogleKeys:
    def __init__(
        self, url: str, *, clock: Callable[[], datetime], transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url, self._clock, self._transport = url, clock, transport
        self._keys: dict[str, dict[str, Any]] = {}
        self._until: datetime | None = None
        self._fetched_at: datetime | None = None

    def key(self, id: str) -> dict[str, Any]:
        """One key as a JSON Web Key; raises `Unauthenticated` when Google has none of that id, or does not answer."""
        now = self._clock()
        is_old = self._until is None or now >= self._until
        may_ask = self._fetched_at is None or now - self._fetched_at >= AGAIN_AFTER
        if (is_old or id not in self._keys) and may_ask:
            self._fetch(now)
        if self._until is None or now >= self._until or id not in self._keys:
            raise Unauthenticated("this token is signed by no key of Google's that is known here")
        return self._keys[id]

    def _fetch(self, now: datetime) -> None:
        """What is known stays when nobody answers."""
        import httpx

        self._fetched_at = now
        try:
            with httpx.Client(transport=self._transport, timeout=TIMEOUT_S) as client:
                answer = client.get(self._url).raise_for_status()
            keys = {str(key["kid"]): key for key in answer.json()["keys"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return
        self._keys, self._until = keys, now + _lifetime(answer.headers.get("Cache-Control", ""))


def _lifetime(cache_control: str) -> timedelta:
    found = re.search(r"max-age=(\d{1,9})", cache_control)
    return min(timedelta(seconds=int(found[1])), KEPT_AT_MOST) if found else KEPT_FOR
