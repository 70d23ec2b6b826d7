"""Webhooks over HTTPS: the name is resolved once, every address must be public, and exactly that one is called.

So a name that resolves to a private address now, or to another one a moment later, reaches nothing of ours.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common.domain.outbox import is_loopback_name, is_public, refusal_of_url
from common.errors import DeliveryFailed, DeliveryRefused

if TYPE_CHECKING:
    import httpx

TIMEOUT_S, CONNECT_S = 5.0, 3.0
FINAL = frozenset({400, 401, 403, 404, 405, 410, 413, 415, 422})
"""Answers that another attempt would not change."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """Every address of a name; raises OSError."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class HttpCourier:
    """`ports.Courier`. `resolve` and `transport` can be swapped by a test."""

    def __init__(
        self,
        *,
        loopback_allowed: bool = False,
        resolve: Resolve = resolve,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._loopback_allowed, self._resolve, self._transport = loopback_allowed, resolve, transport

    @functools.cached_property
    def _http(self) -> httpx.Client:
        """Made when it is first needed: most invocations deliver nothing."""
        import httpx

        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_S)
        return httpx.Client(timeout=timeout, follow_redirects=False, trust_env=False, transport=self._transport)

    def close(self) -> None:
        if "_http" in vars(self):
            self._http.close()

    def post(self, url: str, payload: bytes, headers: Mapping[str, str]) -> None:
        import httpx

        refusal = refusal_of_url(url, loopback_allowed=self._loopback_allowed)
        if refusal:
            raise DeliveryRefused(refusal)
        parts = urlsplit(url)
        host = parts.hostname or ""
        address = self._address(host, parts.port or (443 if parts.scheme == "https" else 80))
        pinned = httpx.URL(url).copy_with(host=str(address))
        request = self._http.build_request("POST", pinned, content=payload, headers={**headers, "Host": parts.netloc})
        # the certificate is checked against the name, the connection goes to the address
        request.extensions["sni_hostname"] = host
        try:
            answer = self._http.send(request, stream=True)
            answer.close()
        except httpx.HTTPError as error:
            raise DeliveryFailed(f"{host} did not take it: {type(error).__name__}") from error
        if answer.status_code in FINAL or answer.is_redirect:
            raise DeliveryRefused(f"{host} answered {answer.status_code}")
        if not answer.is_success:
            raise DeliveryFailed(f"{host} answered {answer.status_code}")

    def _address(self, host: str, port: int) -> Address:
        try:
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in self._resolve(host, port)]
        except (OSError, ValueError) as error:
            raise DeliveryFailed(f"{host} cannot be resolved") from error
        if not found:
            raise DeliveryFailed(f"{host} cannot be resolved")
        if self._loopback_allowed and is_loopback_name(host) and all(address.is_loopback for address in found):
            return found[0]
        if private := [address for address in found if not is_public(address)]:
            raise DeliveryFailed(f"{host} resolves to {private[0]}, which is not a public address")
        return found[0]
