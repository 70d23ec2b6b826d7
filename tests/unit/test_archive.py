"""The archive that a deploy uploads: what is in it, the same bytes every time, and what each entry point loads."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from common.topology import FUNCTIONS, RIGHTS, SCHEDULES
from infra.deploy import archive

HEAVY = ("boto3", "google.cloud.firestore", "httpx", "google.cloud.compute_v1", "sqlite3", "argon2", "rich")
"""What costs a cold start a tenth of a second or more, or is only for some requests."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    with zipfile.ZipFile(io.BytesIO(archive.build().data)) as zipped:
        zipped.extractall(folder)
    return folder


def test_two_builds_of_the_same_sources_are_the_same_bytes(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for part in (*archive.PARTS, "infra/requirements"):
        shutil.copytree(archive.ROOT / part, copy / part, ignore=shutil.ignore_patterns("node_modules"))
    for path in copy.rglob("*"):
        os.utime(path, (time.time(), time.time() - 10_000))

    assert archive.build(copy).data == archive.build().data


def test_one_changed_byte_is_another_archive(tmp_path: Path) -> None:
    for part in (*archive.PARTS, "infra/requirements"):
        shutil.copytree(archive.ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "common" / "errors.py").write_text("x = 1\n")

    assert archive.build(tmp_path).id != archive.build().id


def test_nothing_that_runs_elsewhere_is_in_it(unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}

    assert {"main.py", "requirements.txt", "common/bootstrap.py", *(row.source for row in FUNCTIONS)} <= names
    assert {name.partition("/")[0] for name in names} == {*archive.PARTS, "main.py", "requirements.txt"}
    assert not [name for name in names if name.startswith(("common/cli", "common/host")) or "__pycache__" in name]


def test_what_clashes_with_functions_framework_is_not_required(unpacked: Path) -> None:
    required = (unpacked / "requirements.txt").read_text()

    for name in ("google-cloud-functions", "google-cloud-scheduler", "rich==", "typer=="):
        assert name not in required
    assert "--hash=sha256:" in required


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)
def test_an_entry_point_loads_nothing_heavy_before_its_first_request(unpacked: Path, row) -> None:
    script = f"import sys, main; main.{row.name}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(unpacked)!r}); {script}"],
        capture_output=True,
        text=True,
        cwd=unpacked,
    )

    assert loaded.returncode == 0, loaded.stderr[-2000:]
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("row", FUNCTIONS, ids=lambda row: row.name)
def test_while_an_entry_point_is_loaded_garbage_is_hardly_looked_for(unpacked: Path, row) -> None:
    """There is none; each look at what is young costs, and a cold start used to have two hundred."""
    looks = 'sum(generation["collections"] for generation in gc.get_stats())'
    script = f"import gc, functions_framework, main; before = {looks}; main.{row.name}; print({looks} - before)"
    counted = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=unpacked)

    assert counted.returncode == 0, counted.stderr[-2000:]
    assert int(counted.stdout) <= 5


A_PASS = """
import sys, main
from common import bootstrap
main.reconcile
from jobs import reconcile
print(reconcile.run(bootstrap.app()), file=sys.stderr)
print(*(name for name in NAMES if name in sys.modules))
"""
OF_SLACK = ("common.chatops", "common.views", "common.web.instances", "common.web.slack_outbox")


def test_a_pass_of_the_reconcile_loads_nothing_of_slack_and_of_the_api(unpacked: Path, tmp_path: Path) -> None:
    """While nothing waits for Slack: its ordinary run. The marketplace does not answer, which changes nothing here."""
    env = {
        "DUMONT_STORE": f"sqlite:///{tmp_path}/store.db",
        "DUMONT_URL": "http://127.0.0.1:9",
        "JWT_SECRET": "0" * 32,
        "VAST_API_KEY": "k",
        "VAST_URL": "http://127.0.0.1:9",
        "STORAGE_PROVIDER": "s3",
        "S3_BUCKET": "b",
        "S3_KEY_ID": "k",
        "S3_APPLICATION_KEY": "s",
        "S3_ENDPOINT": "http://127.0.0.1:9",
    }
    names = (*OF_SLACK, "boto3", "google.cloud.firestore", "google.cloud.compute_v1", "argon2")
    script = f"NAMES = {names!r}\nimport sys; sys.path.insert(0, {str(unpacked)!r})\n{A_PASS}"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=unpacked, env=env, timeout=60
    )

    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "'unknown': ['vast']" in ran.stderr
    assert ran.stdout.split() == []


def test_a_name_that_is_no_entry_point_is_refused(unpacked: Path) -> None:
    script = "import main; main.nobody"
    refused = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=unpacked)

    assert "AttributeError: nobody" in refused.stderr


def test_the_table_holds_together() -> None:
    by_name = {row.name: row for row in FUNCTIONS}

    for row in FUNCTIONS:
        assert float(row.cpu) >= 1 or row.concurrency == 1, "less than a CPU takes one request at a time"
        assert set(row.rights) <= set(RIGHTS)
        assert len(f"dumont-{row.service}") <= 30, "a service account's name"
        assert row.name == "api" or row.path.rpartition("/")[2] == row.name
    for schedule in SCHEDULES:
        assert not by_name[schedule.name].public
        assert 15 <= schedule.deadline_s <= 1800
        assert schedule.deadline_s <= by_name[schedule.name].timeout_s
    for row in FUNCTIONS:
        assert row.public or row.name in {schedule.name for schedule in SCHEDULES}
