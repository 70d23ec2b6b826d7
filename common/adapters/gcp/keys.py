"""As whom we call Google: a service account's key, the account as which the process runs, or nobody (a simulation)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.errors import SettingError

SCOPE = "https://www.googleapis.com/auth/compute"
ANONYMOUS = "anonymous"
"""In the place of credentials: none are sent, which only a simulated Google takes."""
DEFAULT_CREDENTIALS = "default"
"""In the place of credentials: those of the service account as which the process runs."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
Key = dict[str, Any] | str


def key_of(credentials: str, base_url: str) -> Key:
    """The key itself; raises `SettingError`. ANONYMOUS only towards this machine itself."""
    if credentials == ANONYMOUS:
        if urlsplit(base_url).hostname not in LOOPBACK:
            raise SettingError(f"GCP_CREDENTIALS is {ANONYMOUS}, which is for a simulated Google on this machine only")
        return credentials
    if credentials == DEFAULT_CREDENTIALS:
        return credentials
    try:
        text = credentials if credentials.lstrip().startswith("{") else Path(credentials).read_text()
        key = json.loads(text)
    except (OSError, ValueError) as error:
        raise SettingError(f"GCP_CREDENTIALS is no key of a service account: {type(error).__name__}") from None
    if not isinstance(key, dict) or key.get("type") != "service_account":
        raise SettingError("GCP_CREDENTIALS is no key of a service account: its type is another")
    return key


def credentials_of(key: Key) -> Any:
    """Google's own object for it; raises `SettingError` for a key that is broken."""
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.oauth2.service_account import Credentials

    class Quiet(Credentials):
        """Calls nobody on its own: Google's class asks Google for its allowed locations, on a thread of its own and
        whatever endpoint was set, before the first call."""

        def _maybe_start_regional_access_boundary_refresh(self, request: Any, url: Any) -> None:
            """Not asked for."""

    if key == ANONYMOUS:
        return AnonymousCredentials()  # type: ignore[no-untyped-call]
    if isinstance(key, str):
        return google.auth.default(scopes=[SCOPE])[0]
    try:
        return Quiet.from_service_account_info(key)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise SettingError(f"GCP_CREDENTIALS is no key of a service account: {error}") from None
