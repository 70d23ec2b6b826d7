"""A wrong or missing setting stops the start with its name and an example."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import bootstrap
from common.config import Settings
from common.errors import SettingError

GOOD = {
    "DUMONT_STORE": "sqlite:////tmp/x.db",
    "DUMONT_URL": "https://functions.example",
    "JWT_SECRET": "0123456789abcdef0123",
    "VAST_API_KEY": "k",
    "STORAGE_PROVIDER": "b2",
    "B2_KEY_ID": "id",
    "B2_APPLICATION_KEY": "secret",
    "B2_BUCKET": "bucket",
    "B2_ENDPOINT": "https://s3.us-west-000.backblazeb2.com",
}


def test_the_customers_names_are_understood() -> None:
    settings = Settings.from_env(GOOD)

    assert (settings.bucket, settings.storage_key_id) == ("bucket", "id")
    assert settings.host_storage_endpoint == settings.storage_endpoint
    assert settings.timing.idle_for_s == 180


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"VAST_API_KEY", "STORAGE_PROVIDER"}))
def test_a_missing_setting_is_named_with_an_example(name: str) -> None:
    with pytest.raises(SettingError, match=rf"{name} is not set.*Example"):
        Settings.from_env({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STORAGE_PROVIDER", "ftp"),
        ("JWT_SECRET", "short"),
        ("DUMONT_IDLE_FOR_S", "soon"),
        ("DUMONT_SILENT_AFTER_S", "0"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=name):
        Settings.from_env(GOOD | {name: value})


def test_without_google_credentials_there_are_no_standbys() -> None:
    for env in ({}, {"GCP_CREDENTIALS": ""}):
        assert bootstrap.standbys_of(Settings.from_env(GOOD | env)) is None


def test_google_credentials_are_a_key_its_file_or_the_accounts_own() -> None:
    env = {"GCP_CREDENTIALS": "anonymous", "GCP_PROJECT": "my-project", "GCP_URL": "http://127.0.0.1:1"}
    standbys = bootstrap.standbys_of(Settings.from_env(GOOD | env))

    assert standbys
    assert standbys.name == "gcp"
    assert "secret" not in repr(Settings.from_env(GOOD | {"GCP_CREDENTIALS": '{"secret": 1}'}))
    for wrong in ({"GCP_CREDENTIALS": "/no/such/file"}, {"GCP_URL": "https://compute.googleapis.com"}):
        with pytest.raises(SettingError, match="GCP_CREDENTIALS"):
            bootstrap.standbys_of(Settings.from_env(GOOD | env | wrong))


def test_slack_is_set_up_as_a_whole_and_its_channels_are_ids() -> None:
    both = {"SLACK_BOT_TOKEN": "xoxb-1", "SLACK_SIGNING_SECRET": "0123456789abcdef"}

    settings = Settings.from_env(GOOD | both | {"SLACK_CHANNELS": "C01, C02,"})
    assert settings.slack_channels == {"C01", "C02"}
    assert "xoxb-1" not in repr(settings)
    for name, value in both.items():
        with pytest.raises(SettingError, match=r"SLACK_\w+ is not set.*Example"):
            Settings.from_env(GOOD | {name: value})
    with pytest.raises(SettingError, match="SLACK_CHANNELS is wrong"):
        Settings.from_env(GOOD | both | {"SLACK_CHANNELS": "#general"})
    with pytest.raises(SettingError, match="SLACK_SIGNING_SECRET is wrong"):
        Settings.from_env(GOOD | both | {"SLACK_SIGNING_SECRET": "short"})


def test_restic_password_is_refused_with_its_successor() -> None:
    with pytest.raises(SettingError, match=r"RESTIC_PASSWORD is no longer used.*key"):
        Settings.from_env(GOOD | {"RESTIC_PASSWORD": "x"})


def test_secrets_do_not_show_in_a_printed_setting() -> None:
    assert GOOD["JWT_SECRET"] not in repr(Settings.from_env(GOOD))


def test_the_pools_terms_are_settings_with_names_of_their_own() -> None:
    settings = Settings.from_env(GOOD | {"DUMONT_POOL_SIZE": "2", "DUMONT_POOL_REGIONS": "US, NO"})

    assert (settings.pool.size, settings.pool.regions) == (2, ("US", "NO"))
    for name, value in {"SIZE": "-1", "REGIONS": "US, Norway", "BUDGET_USD_PER_HOUR": "free"}.items():
        with pytest.raises(SettingError, match=f"DUMONT_POOL_{name} is wrong"):
            Settings.from_env(GOOD | {f"DUMONT_POOL_{name}": value})


def test_a_second_marketplace_is_one_more_key() -> None:
    settings = Settings.from_env(GOOD | {"TENSORDOCK_API_KEY": "t", "TENSORDOCK_URL": "http://127.0.0.1:1"})

    assert (settings.vast_api_key, settings.tensordock_api_key) == ("k", "t")
    assert settings.tensordock_url == "http://127.0.0.1:1"
    assert "'t'" not in repr(settings)


@pytest.mark.parametrize("ask", [list, len, lambda markets: markets["vast"], lambda markets: "vast" in markets])
def test_without_any_marketplaces_key_whoever_asks_one_is_told_their_names(tmp_path: Path, ask) -> None:
    env = {name: value for name, value in GOOD.items() if name != "VAST_API_KEY"}
    app = bootstrap.build(Settings.from_env(env | {"DUMONT_STORE": f"sqlite:///{tmp_path}/store.db"}))

    with pytest.raises(SettingError, match="VAST_API_KEY or TENSORDOCK_API_KEY"):
        ask(app.markets)


def test_each_vendor_is_set_up_with_its_own_quirks() -> None:
    r2 = {name.replace("B2", "R2"): value for name, value in GOOD.items()} | {"STORAGE_PROVIDER": "r2"}
    wasabi = {name.replace("B2", "WASABI"): value for name, value in GOOD.items()} | {"STORAGE_PROVIDER": "wasabi"}

    assert Settings.from_env(r2).storage_region == "auto"
    assert Settings.from_env(r2 | {"R2_REGION": "us-east-1"}).storage_region == "us-east-1"
    with pytest.raises(SettingError, match=r"WASABI_ROLE_ARN is not set.*Example"):
        Settings.from_env(wasabi)
    assert Settings.from_env(wasabi | {"DUMONT_STORAGE_ACCESS": "shared"}).storage_access == "shared"
    with pytest.raises(SettingError, match="DUMONT_STORAGE_ACCESS is wrong"):
        Settings.from_env(GOOD | {"DUMONT_STORAGE_ACCESS": "open"})


def test_the_retention_is_a_setting_and_a_wrong_one_is_named() -> None:
    assert Settings.from_env(GOOD | {"DUMONT_KEEP_LAST": "3"}).keep.last == 3
    with pytest.raises(SettingError, match="DUMONT_KEEP_LAST is wrong"):
        Settings.from_env(GOOD | {"DUMONT_KEEP_LAST": "0"})
