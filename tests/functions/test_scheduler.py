"""Who may start a job: Cloud Scheduler by Google's signature, or the local ticker where a setting says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Request
from werkzeug.test import EnvironBuilder

from common import auth, bootstrap
from common.adapters.google_keys import GoogleKeys
from common.config import Settings
from common.errors import Unauthenticated
from common.ports import App
from common.web import problem
from tests.unit.test_config import GOOD

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACCOUNT = "dumont-scheduler@acme.iam.gserviceaccount.com"
AUDIENCE = "https://europe-west1-acme.cloudfunctions.net/reconcile"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Google:
    """Publishes keys, as https://www.googleapis.com/oauth2/v3/certs does."""

    def __init__(self) -> None:
        self.keys = {"one": KEY}
        self.fetches, self.is_silent = 0, False

    def __call__(self, url: str) -> tuple[bytes, str]:
        self.fetches += 1
        if self.is_silent:
            raise OSError("nobody answers")
        rows = [
            json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": id, "alg": "RS256"}
            for id, key in self.keys.items()
        ]
        return json.dumps({"keys": rows}).encode(), "public, max-age=20000, must-revalidate"


class Clock:
    now = NOW


@pytest.fixture
def google() -> Google:
    return Google()


@pytest.fixture
def app(tmp_path: Path, google: Google) -> Iterator[App]:
    scheduler = {"DUMONT_SCHEDULER_ACCOUNT": ACCOUNT, "DUMONT_SCHEDULER_AUDIENCE": AUDIENCE}
    made = bootstrap.build(Settings.from_env({**GOOD, **scheduler, "DUMONT_STORE": f"sqlite://{tmp_path / 'x.db'}"}))
    Clock.now = NOW
    keys = GoogleKeys("https://keys.google.sim", clock=lambda: Clock.now, fetch=google)
    yield replace(made, clock=lambda: Clock.now, google_key=keys.key)
    made.store.close()  # type: ignore[attr-defined]


def token(key: Any = KEY, id: str = "one", **claims: Any) -> str:
    usual = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "email": ACCOUNT,
        "email_verified": True,
        "iat": int(NOW.timestamp()),
        "exp": int((NOW + timedelta(hours=1)).timestamp()),
    }
    return jwt.encode(usual | claims, key, algorithm="RS256", headers={"kid": id})


def ask(app: App, token: str) -> None:
    request = Request(EnvironBuilder(method="POST", headers={"Authorization": f"Bearer {token}"}).get_environ())
    problem.only_the_scheduler(app, request)


def test_cloud_scheduler_is_let_in_and_googles_keys_are_fetched_once(app: App, google: Google) -> None:
    for _ in range(20):
        ask(app, token())

    assert google.fetches == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"},
        {"aud": "https://europe-west1-acme.cloudfunctions.net/hibernate-idle"},
        {"email": "someone@acme.iam.gserviceaccount.com"},
        {"email_verified": False},
        {"email_verified": "true"},
        {"exp": int((NOW - timedelta(minutes=1)).timestamp())},
        {"iat": int((NOW + timedelta(minutes=5)).timestamp())},
        {"exp": "soon"},
    ],
    ids=str,
)
def test_one_wrong_claim_is_enough_to_be_refused(app: App, wrong: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        ask(app, token(**wrong))


def test_a_strangers_signature_under_googles_key_id_is_refused(app: App) -> None:
    with pytest.raises(Unauthenticated):
        ask(app, token(OTHER_KEY))


def test_a_token_signed_with_the_public_key_as_a_shared_secret_is_refused(app: App, google: Google) -> None:
    forged = jwt.encode({"aud": AUDIENCE}, "x" * 64, algorithm="HS256", headers={"kid": "one"})

    with pytest.raises(Unauthenticated):
        ask(app, forged)


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "é.é.é"])
def test_what_is_no_token_is_refused(app: App, text: str) -> None:
    with pytest.raises(Unauthenticated):
        ask(app, text)


def test_a_new_key_is_fetched_but_invented_ids_make_no_calls(app: App, google: Google) -> None:
    ask(app, token())
    google.keys["two"] = OTHER_KEY
    Clock.now += timedelta(minutes=2)
    ask(app, token(OTHER_KEY, "two"))

    for number in range(50):
        with pytest.raises(Unauthenticated):
            ask(app, token(OTHER_KEY, f"invented-{number}"))

    assert google.fetches == 2


def test_while_google_is_silent_the_keys_that_are_known_serve_until_their_time_is_over(
    app: App, google: Google
) -> None:
    ask(app, token())
    google.is_silent = True
    Clock.now += timedelta(seconds=19_999)
    ask(app, token(exp=int((Clock.now + timedelta(hours=1)).timestamp())))
    Clock.now += timedelta(seconds=1)

    with pytest.raises(Unauthenticated):
        ask(app, token(exp=int((Clock.now + timedelta(hours=1)).timestamp())))


def test_the_local_tickers_token_is_good_only_where_a_setting_says_so(app: App) -> None:
    app = replace(app, settings=app.settings.model_copy(update={"jwt_secret": "s" * 32}))
    ours = auth.scheduler_token("reconcile", secret="s" * 32, now=NOW)

    with pytest.raises(Unauthenticated):
        ask(app, ours)
    ask(replace(app, settings=app.settings.model_copy(update={"local_ticker": True})), ours)


def test_a_deployment_without_a_scheduler_refuses_and_says_what_to_set(app: App) -> None:
    without = app.settings.model_copy(update={"scheduler_account": None})

    with pytest.raises(Unauthenticated, match="DUMONT_SCHEDULER_ACCOUNT"):
        ask(replace(app, settings=without), token())
