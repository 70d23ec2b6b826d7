"""The public keys by which Google signs its tokens: fetched once, kept as long as Google says."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from common.errors import Unauthenticated

TIMEOUT_S = 5.0
BODY_LIMIT_BYTES = 1 << 20
KEPT_FOR = timedelta(hours=1)
"""Where Google names no time."""
KEPT_AT_MOST = timedelta(hours=24)
AGAIN_AFTER = timedelta(seconds=60)
"""Between two fetches for keys that are not known: so that invented ids make no calls."""


Fetch = Callable[[str], tuple[bytes, str]]
"""The body of a URL and its Cache-Control; raises OSError when nobody answers or the answer is not 200."""


def fetch(url: str) -> tuple[bytes, str]:
    """By the standard library: a job's first request need not wait for a bigger client to be loaded."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return answer.read(BODY_LIMIT_BYTES), answer.headers.get("Cache-Control", "")


class GoogleKeys:
    def __init__(self, url: str, *, clock: Callable[[], datetime], fetch: Fetch = fetch) -> None:
        self._url, self._clock, self._ask = url, clock, fetch
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
        self._fetched_at = now
        try:
            body, cache_control = self._ask(self._url)
            keys = {str(key["kid"]): key for key in json.loads(body)["keys"]}
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._keys, self._until = keys, now + _lifetime(cache_control)


def _lifetime(cache_control: str) -> timedelta:
    found = re.search(r"max-age=(\d{1,9})", cache_control)
    return min(timedelta(seconds=int(found[1])), KEPT_AT_MOST) if found else KEPT_FOR
