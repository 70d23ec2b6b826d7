"""The composition root: the one place that knows which technology stands behind which port."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import ssl
import string
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from common import auth
from common.adapters.courier import HttpCourier
from common.adapters.firestore import FirestoreStore
from common.adapters.google_keys import GoogleKeys
from common.adapters.s3 import S3
from common.config import EXAMPLES, Settings
from common.domain.liveness import Heard
from common.errors import Exists, SettingError
from common.ports import App, Chat, Deployment, Grant, Market, Standbys, StorageAccess, Store

ID_ALPHABET = string.ascii_lowercase + string.digits
ID_LENGTH = 12
DEPLOYMENT_ID_LENGTH = 6
STS_ENDPOINTS = {"wasabi": "https://sts.wasabisys.com"}
"""Amazon's own stands in boto3."""
NUDGE_S = 0.5
"""Long enough to hand the request over."""


_used: list[App] = []


def app(*, asks_markets: bool = False) -> App:
    """The app of this process, from its environment unless another was given to `use`; raises `SettingError`.

    `asks_markets`: of a function whose requests ask marketplaces; they are made ready while it reads its store.
    """
    if not _used:
        built = build(Settings.from_env(os.environ))
        use(built)
        if asks_markets and isinstance(built.markets, Markets):
            built.markets.prepare()
    return _used[-1]


def use(given: App) -> None:
    """Let this process's functions work with that app: what a test or a local run has built."""
    _used[:] = [given]


def build(settings: Settings, store: Store | None = None) -> App:
    """`store` = one that is open already."""
    store = store or store_of(settings.store)
    return App(
        settings=settings,
        store=store,
        markets=Markets(settings, store),
        objects=objects_of(settings),
        standbys=standbys_of(settings),
        storage_access=access_of(settings),
        clock=now,
        ids=random_id,
        deployment=functools.cache(lambda: deployment_of(store, now())),
        log=log,
        heard=Heard(random_id(), settings.timing.silent_after_s),
        courier=HttpCourier(loopback_allowed=settings.webhook_loopback),
        chat=_chat(settings),
        google_key=GoogleKeys(settings.google_keys_url, clock=now).key,
        country_of_ip=country_of_ip,
        nudge=functools.partial(nudge, settings),
        nudge_outbox=functools.partial(nudge_outbox, settings),
    )


def now() -> datetime:
    return datetime.now(UTC)


def store_of(url: str) -> Store:
    """`sqlite:///path` or `firestore://project[/database]`."""
    kind, _, rest = url.partition("://")
    if kind == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from common.adapters.sqlite import SqliteStore

        return SqliteStore(rest)
    if kind == "firestore" and rest:
        project, _, database = rest.partition("/")
        return FirestoreStore(project, database or "(default)")
    raise SettingError(
        f"DUMONT_STORE is {url!r}. Example: sqlite:////var/lib/dumont/store.db or firestore://my-project"
    )


def deployment_of(store: Store, at: datetime) -> Deployment:
    """Drawn when the store is new; who comes second reads what the first one drew."""
    doc = store.get("deployment", "self")
    if doc is None:
        drawn = {"id": random_id(DEPLOYMENT_ID_LENGTH), "key": secrets.token_hex(32), "created_at": at}
        try:
            doc = store.create("deployment", "self", drawn)
        except Exists:
            doc = store.get("deployment", "self")
    assert doc is not None
    return Deployment(id=doc.data["id"], key=bytes.fromhex(doc.data["key"]))


def random_id(length: int = ID_LENGTH) -> str:
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(length))


def log(event: str, **fields: Any) -> None:
    """One JSON line on stderr, as Cloud Logging reads it."""
    print(json.dumps({"message": event, **fields}, default=str), file=sys.stderr, flush=True)


def nudge(settings: Settings, key: str) -> None:
    _hint(f"{settings.url}/provision/advance", auth.advance_token(key, secret=settings.jwt_secret, now=now()))


def nudge_outbox(settings: Settings) -> None:
    """Where Slack is not set up nobody waits for a message: they go with the minute."""
    if settings.slack_signing_secret:
        _hint(f"{settings.url}/slack/work", auth.outbox_token(secret=settings.jwt_secret, now=now()))


def _hint(url: str, token: str) -> None:
    """Post it and do not wait for what comes of it: a function's answer may take its whole budget."""
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        httpx.post(url, headers={"Authorization": f"Bearer {token}"}, timeout=NUDGE_S)


class Markets(Mapping[str, Market]):
    """The marketplaces that have a key, each made when it is first needed: most invocations call none.

    Whoever asks where there is no key gets a `SettingError`, and no answer that looks like an empty account. A function
    that needs none is given none.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store
        self._made: dict[str, Market] = {}
        self._making = threading.Lock()

    def __getitem__(self, name: str) -> Market:
        with self._making:
            if name not in self._made:
                self._made[name] = _market(name, self._keys()[name], self._settings, self._store)
            return self._made[name]

    def _keys(self) -> dict[str, str]:
        keys = {"vast": self._settings.vast_api_key, "tensordock": self._settings.tensordock_api_key}
        if not any(keys.values()):
            names = " or ".join(f"{name.upper()}_API_KEY" for name in keys)
            raise SettingError(f"no marketplace's key is set: set {names}. Example: {EXAMPLES['VAST_API_KEY']}")
        return {name: key for name, key in keys.items() if key}

    def prepare(self) -> None:
        """Make them in the background: to load the HTTP client and the authorities is a tenth of a cold start.

        What fails there fails again, and is seen, where a marketplace is asked for.
        """
        threading.Thread(target=lambda: list(self.values()), name="markets", daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())


def _market(name: str, key: str, settings: Settings, store: Store) -> Market:
    from common.domain.shape import call_of
    from common.workflows.answers import Noted

    answers = Noted(store, name)

    def told(method: str, path: str, answer: Any) -> None:
        answers.note(call_of(method, path), answer, now())

    if name == "vast":
        from common.adapters.vast import Vast

        return Vast(key, base_url=settings.vast_url, verify=_authorities(), told=told)
    from common.adapters.tensordock import TensorDock

    return TensorDock(key, base_url=settings.tensordock_url, verify=_authorities(), told=told)


def standbys_of(settings: Settings) -> Standbys | None:
    """Where standbys are rented; None = no Google credentials are set, so that instances are unprotected.

    Google's client is loaded with the first call. Raises `SettingError` for a key or project that is none.
    """
    if settings.gcp_credentials is None:
        return None
    from common.adapters.gcp import GcpCompute

    return GcpCompute(settings.gcp_credentials, project=settings.gcp_project, base_url=settings.gcp_url)


def country_of_ip(ip: str) -> str | None:
    """`region.CountryOfIp`; the database is loaded with the first address that is asked for."""
    from common.adapters.ip_registry import country_of

    return country_of(ip)


@functools.cache
def _authorities() -> ssl.SSLContext:
    """By whom marketplaces' certificates are judged: read once for all of them, for it takes some 20 ms of CPU."""
    import httpx

    return httpx.create_ssl_context()


def _chat(settings: Settings) -> Chat | None:
    if settings.slack_bot_token is None:
        return None
    from common.adapters.slack import Slack

    return Slack(settings.slack_bot_token, base_url=settings.slack_url, loopback_allowed=settings.webhook_loopback)


def access_of(settings: Settings) -> StorageAccess | None:
    """Each vendor's own way to credentials for one prefix."""
    if settings.storage_access == "shared":
        return None
    key: Any = {
        "bucket": settings.bucket,
        "key_id": settings.storage_key_id,
        "secret": settings.storage_application_key,
    }
    match settings.storage_provider:
        case "r2":
            from common.adapters.r2 import R2

            return Remembered(R2(endpoint=settings.host_storage_endpoint, **key))
        case "b2":
            from common.adapters.b2 import B2

            return Remembered(B2(api=settings.b2_api_url, **key))
        case provider:
            from common.adapters.sts import Sts

            endpoint = settings.storage_sts_endpoint or STS_ENDPOINTS.get(provider)
            role_arn, region = settings.storage_role_arn, settings.storage_region
            return Remembered(Sts(endpoint=endpoint, role_arn=role_arn, region=region, **key))


class Remembered:
    """A grant is given again until half of its time is over: a host asks every few seconds while it has an order."""

    def __init__(self, access: StorageAccess) -> None:
        self._access = access
        self._grants: dict[str, tuple[datetime, Grant]] = {}

    def grant(self, prefix: str, *, for_s: float, now: datetime) -> Grant:
        """As `StorageAccess` says, with at least half of the time."""
        given_at, known = self._grants.get(prefix, (now, None))
        if known and now - given_at < (known.expires_at - given_at) / 2:
            return known
        self._grants = {name: row for name, row in self._grants.items() if row[1].expires_at > now}
        granted = self._access.grant(prefix, for_s=for_s, now=now)
        self._grants[prefix] = (now, granted)
        return granted


def objects_of(settings: Settings) -> S3:
    return S3(
        endpoint=settings.storage_endpoint,
        region=settings.storage_region,
        bucket=settings.bucket,
        key_id=settings.storage_key_id,
        secret=settings.storage_application_key,
        presign_endpoint=settings.host_storage_endpoint,
        keeps_deleted_versions=settings.storage_provider == "b2",
    )
