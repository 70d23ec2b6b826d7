"""`dumont deploy`, as it is typed: a key file, the environment's settings, a real S3 server, a simulated Google."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.functions_v2", reason="the deployer is not installed: make deployer")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from typer.testing import CliRunner

from common.adapters.sqlite import SqliteStore
from infra.demo.gcp import google_sim
from infra.demo.gcp.sim import GoogleSim
from infra.demo.s3_server import S3Server, s3_server
from infra.deploy.cli import deploy, refuse_while_machines_bill
from infra.deploy.resource import Failed
from tests.deploy.cloud import PROJECT, REGION, Cloud, Served, built, cloud, served

__all__ = ["built", "cloud", "served"]

WHERE = ["--project", PROJECT, "--region", REGION]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def google(cloud: Cloud, served: Served, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoogleSim:
    """An empty project whose operations end at once, and an environment that names it."""
    cloud.sim = google_sim(PROJECT, REGION, operation_s=0, settle_s=0)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key": key.decode(),
        "client_email": f"me@{PROJECT}.iam.gserviceaccount.com",
        "token_uri": f"{served.url}/token",
    }
    (tmp_path / "key.json").write_text(json.dumps(account))
    env = {
        "DUMONT_GOOGLE_URL": served.url,
        "GCP_CREDENTIALS": str(tmp_path / "key.json"),
        "TENSORDOCK_API_KEY": "dock-key",
        "STORAGE_PROVIDER": "s3",
        "S3_ENDPOINT": s3.endpoint,
        "S3_BUCKET": s3.bucket,
        "S3_KEY_ID": s3.access_key,
        "S3_APPLICATION_KEY": s3.secret_key,
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return cloud.sim


def test_plan_shows_what_would_be_made_and_its_cost_and_changes_nothing(google: GoogleSim) -> None:
    shown = CliRunner().invoke(deploy, ["plan", *WHERE])

    assert shown.exit_code == 0, shown.output
    assert "+ function heartbeat" in shown.output
    assert "+ schedule dumont-reconcile" in shown.output
    assert "prices as of" in shown.output
    assert "+ api compute" in shown.output
    assert "+ firewall dumont-standby" in shown.output
    assert "+ role roles/compute.instanceAdmin.v1" in shown.output
    assert "a standby, for each instance that has one, hibernated or not: 10.12 USD a month" in shown.output
    assert {path for _, path in google.writes} <= {"/token"}


def test_apply_then_status_then_a_plan_with_nothing_to_do(google: GoogleSim) -> None:
    applied = CliRunner().invoke(deploy, ["apply", *WHERE])
    status = CliRunner().invoke(deploy, ["status", *WHERE])

    assert applied.exit_code == 0, applied.output
    assert f"https://{REGION}-{PROJECT}.cloudfunctions.net/api" in applied.output
    assert status.exit_code == 0, status.output
    assert "= function api" in status.output


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("S3_BUCKET", "", "S3_BUCKET is not set"),
        ("GCP_CREDENTIALS", "/nowhere.json", "no Google credentials"),
        ("STORAGE_PROVIDER", "floppy", "STORAGE_PROVIDER is 'floppy'"),
        ("DUMONT_IDLE_FOR_S", "soon", "DUMONT_IDLE_FOR_S is wrong"),
    ],
)
def test_a_wrong_setting_stops_before_anything_is_made(
    google: GoogleSim, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)

    refused = CliRunner().invoke(deploy, ["apply", *WHERE])

    assert refused.exit_code == 2
    assert said in refused.output
    assert not google.writes


def test_the_key_itself_is_taken_as_the_path_of_its_file_is(google: GoogleSim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCP_CREDENTIALS", Path(os.environ["GCP_CREDENTIALS"]).read_text())

    shown = CliRunner().invoke(deploy, ["plan", *WHERE])

    assert shown.exit_code == 0, shown.output


def test_a_broken_key_is_refused_and_not_shown(google: GoogleSim, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(os.environ["GCP_CREDENTIALS"]).read_text()
    for broken in (whole[:-1], whole.replace("PRIVATE KEY", "SECRET"), whole.replace("client_email", "email")):
        monkeypatch.setenv("GCP_CREDENTIALS", broken)

        shown = CliRunner().invoke(deploy, ["plan", *WHERE])

        assert (shown.exit_code, "no Google credentials" in shown.output) == (2, True)
        assert json.loads(whole)["private_key"].splitlines()[1] not in shown.output


def test_a_deployment_is_not_destroyed_while_a_machine_may_still_bill(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "store.db"))
    store.create("rentals", "dumont-d-i1-1-aaaaaaaa", {"settled": True})
    refuse_while_machines_bill(store)
    store.create("rentals", "dumont-d-i1-2-bbbbbbbb", {"settled": False})

    with pytest.raises(Failed, match=r"1 machines are not settled yet .dumont-d-i1-2-bbbbbbbb"):
        refuse_while_machines_bill(store)
    store.close()


def test_a_deployment_is_not_destroyed_from_another_region_which_would_leave_its_functions(google: GoogleSim) -> None:
    CliRunner().invoke(deploy, ["apply", *WHERE])
    google.calls.clear()

    elsewhere = ["--project", PROJECT, "--region", "us-central1"]
    refused = CliRunner().invoke(deploy, ["destroy", "--with-data", "--yes", *elsewhere])

    assert (refused.exit_code, f"say --region {REGION}" in refused.output) == (1, True), refused.output
    assert {path for _, path in google.writes} <= {"/token"}


def test_a_standby_of_another_deployment_is_told_and_left(google: GoogleSim) -> None:
    """There is no database yet, and so no deployment of which it could be."""
    google.enabled["compute"] = datetime(2026, 1, 1, tzinfo=UTC)
    google.compute.reserve(REGION, "dumont-other-i1", None, datetime(2026, 1, 1, tzinfo=UTC))

    destroyed = CliRunner().invoke(deploy, ["destroy", "--yes", *WHERE])

    assert destroyed.exit_code == 0, destroyed.output
    assert f"left as they are: address dumont-other-i1 in {REGION}" in destroyed.output
    assert len(google.compute.addresses()) == 1


def test_a_refusal_of_google_is_one_sentence_and_how_to_go_on(google: GoogleSim) -> None:
    from infra.demo.gcp.sim import Refused, Trouble

    refusal = Refused(403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.create' denied")
    google.trouble.append(Trouble("POST", "/serviceAccounts$", refusal))

    refused = CliRunner().invoke(deploy, ["apply", *WHERE])

    assert refused.exit_code == 1
    assert "iam.serviceAccounts.create" in refused.output
    assert "run it again to go on" in refused.output
    assert "Traceback" not in refused.output
