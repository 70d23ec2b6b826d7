"""The engine by itself: backup, restore, verify, list, prune over a real S3 server, as `dumont-host` is typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.demo.s3_server import S3Server
from infra.demo.s3_vendors import Holder, vendor_s3
from tests.snapshots_fixtures import Box, tree

URL = "s3://dumont/repositories/one"


def host(box: Box, *words: object, code: int = 0, passphrase: str = "correct horse", **env: str) -> dict[str, Any]:
    """Types it with --json; the answer is one line."""
    settings = {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL": box.endpoint.url,
        "AWS_ACCESS_KEY_ID": box.endpoint.access_key,
        "AWS_SECRET_ACCESS_KEY": box.endpoint.secret_key,
        "DUMONT_SNAPSHOT_KEY": passphrase,
        **env,
    }
    command = [sys.executable, "-m", "common.host.repository", *map(str, words), "--json", "--home", box.base / "home"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("\n")) == (code, 1), done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_a_directory_goes_into_a_bucket_and_comes_back(box: Box) -> None:
    (box.root / "a").write_bytes(b"a" * 5000)
    (box.root / "empty").mkdir()
    first = host(box, "backup", box.root, URL)
    (box.root / "a").write_bytes(b"b" * 5000)
    second = host(box, "backup", box.root, URL)

    newest = host(box, "restore", URL, box.base / "newest")
    older = host(box, "restore", URL, box.base / "older", "--snapshot", first["snapshot"])
    listed = host(box, "list", URL)

    assert tree(box.base / "newest") == tree(box.root)
    assert (box.base / "older/a").read_bytes() == b"a" * 5000
    assert [row["id"] for row in listed["snapshots"]] == [first["snapshot"], second["snapshot"]]
    assert (newest["snapshot"], older["snapshot"]) == (second["snapshot"], first["snapshot"])
    assert host(box, "verify", URL)["bytes_read"] > 0
    assert host(box, "verify", URL, "--quick")["bytes_read"] == 0


def test_a_new_repository_s_key_is_in_the_store_before_its_first_manifest(box: Box, s3_on_loopback: S3Server) -> None:
    (box.root / "a").write_bytes(b"a")
    with vendor_s3("s3", s3_on_loopback) as store:
        store.granted["limited"] = Holder(
            "its secret", lambda action, key: action != "PutObject" or "/keys/" not in key
        )
        limited = {"AWS_ACCESS_KEY_ID": "limited", "AWS_SECRET_ACCESS_KEY": "its secret"}

        assert (
            host(box, "backup", box.root, URL, code=6, AWS_ENDPOINT_URL=store.url, **limited)["error"] == "object_store"
        )
        assert not list(box.objects.list("repositories/one/manifests/"))

        host(box, "backup", box.root, URL, AWS_ENDPOINT_URL=store.url)
    sent = [call.split("/")[2] for call in store.calls if call.startswith("PutObject repositories/one/")]
    assert sent.index("keys", sent.index("keys") + 1) < sent.index("manifests")
    host(box, "restore", URL, box.copy)
    assert tree(box.copy) == tree(box.root)


def test_it_refuses_by_name(box: Box) -> None:
    assert host(box, "restore", URL, box.copy, code=5)["error"] == "object_missing"
    (box.root / "a").write_bytes(b"a")
    host(box, "backup", box.root, URL)

    assert host(box, "restore", URL, box.copy, code=4, passphrase="wrong")["error"] == "snapshot_refused"
    assert host(box, "restore", URL, box.copy, "--snapshot", "7-7", code=5)["error"] == "object_missing"
    assert host(box, "list", URL, code=6, AWS_SECRET_ACCESS_KEY="wrong")["error"] == "object_store"
    assert host(box, "list", URL, code=2, DUMONT_SNAPSHOT_KEY="")["error"] == "bad_setting"
    assert host(box, "list", "http://x/y", code=2)["error"] == "bad_request"
    assert host(box, "backup", box.base / "nowhere", URL, code=5)["error"] == "not_found"
    assert not box.copy.exists()


def test_settings_that_cannot_be_are_named(box: Box) -> None:
    for wrong in ("localhost:9000", "http://127.0.0.1:foo", "ftp://x", "http://"):
        said = host(box, "list", URL, code=2, AWS_ENDPOINT_URL_S3=wrong)
        assert (said["error"], "AWS_ENDPOINT_URL_S3" in said["detail"]) == ("bad_setting", True)
    for many in ("0", "-1", "9" * 15, "x"):
        words = [sys.executable, "-m", "common.host.repository", "prune", URL, "--keep-last", many]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "Traceback" in done.stderr, many in done.stderr) == (2, False, True)


def test_an_interrupted_verb_says_so_in_one_line_and_leaves_no_process(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = os.environ | dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DUMONT_SNAPSHOT_KEY"), "x")
        env["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = ["env", "--default-signal=INT"]  # who was started in the background ignores it, and so do the children
        words += [sys.executable, "-m", "common.host.repository", "backup", str(box.root), URL, "--json"]
        words += ["--home", str(box.base / "home")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(words, env=env, text=True, start_new_session=True, **pipes) as run:
            silent.settimeout(30)
            silent.accept()[0].close()  # it is at work
            os.killpg(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=30)

    assert (run.returncode, json.loads(out)["error"]) == (130, "interrupted"), out + err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def test_a_result_that_nobody_can_read_is_no_success(box: Box) -> None:
    (box.root / "a").write_bytes(b"a")
    settings = os.environ | {
        "AWS_ENDPOINT_URL": box.endpoint.url,
        "AWS_ACCESS_KEY_ID": box.endpoint.access_key,
        "AWS_SECRET_ACCESS_KEY": box.endpoint.secret_key,
        "DUMONT_SNAPSHOT_KEY": "correct horse",
    }
    words = [
        sys.executable,
        "-m",
        "common.host.repository",
        "backup",
        str(box.root),
        URL,
        "--home",
        str(box.base / "h"),
    ]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, env=settings, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)

    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "cannot be written" in done.stderr


def test_every_flipped_byte_is_found_and_none_is_restored(box: Box) -> None:
    (box.root / "a").write_bytes(os.urandom(300_000))
    host(box, "backup", box.root, URL)
    (pack,) = box.objects.list("repositories/one/packs/")
    content = bytearray(box.objects.get(pack.key))
    content[1000] ^= 1
    box.objects.put(pack.key, bytes(content))

    assert host(box, "verify", URL, code=3)["error"] == "snapshot_damaged"
    assert host(box, "restore", URL, box.copy, code=3)["error"] == "snapshot_damaged"
    assert not (box.copy / "a").exists()


def test_a_prune_keeps_what_it_is_told_to_and_removes_packs_a_day_later(box: Box) -> None:
    for number in range(4):
        (box.root / "a").write_bytes(b"%d" % number * 5000)
        host(box, "backup", box.root, URL)

    pruned = host(box, "prune", URL, *("--keep-last", 1, "--keep-hourly", 0, "--keep-daily", 0, "--keep-weekly", 0))

    assert (pruned["snapshots_removed"], pruned["packs_removed"], pruned["packs_waiting"]) == (3, 0, 3)
    shutil.rmtree(box.base / "home")
    host(box, "restore", URL, box.copy)
    assert tree(box.copy) == tree(box.root)


def test_caches_and_what_the_ignore_file_names_are_left_out(box: Box) -> None:
    for name in ("kept", "logs/run.txt", "keep.log", "a.log", ".cache/pip/wheel", ".cache/model", "lost+found/x"):
        path = box.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (box.root / ".dumontignore").write_text("*.log\n!keep.log\n/logs/\n!lost+found/\n")

    taken = host(box, "backup", box.root, URL)
    host(box, "restore", URL, box.copy)

    assert sorted(taken["excluded"]) == [".cache/pip", "a.log", "logs"]
    there = sorted(str(path.relative_to(box.copy)) for path in Path(box.copy).rglob("*") if path.is_file())
    assert there == [".cache/model", ".dumontignore", "keep.log", "kept", "lost+found/x"]


def test_a_line_of_the_ignore_file_that_is_no_pattern_is_reported_and_the_others_hold(box: Box) -> None:
    lines = ["\ufeff*.log", "runs[2024-01]/", "[z-a]", "!", "foo\\", "# a word", "", "/tmp/"]
    for name in ("a.log", "kept", "tmp/x", "runs[2024-01]/x"):
        path = box.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (box.root / ".dumontignore").write_text("\n".join(lines), encoding="utf-8")

    taken = host(box, "backup", box.root, URL)

    assert sorted(taken["excluded"]) == ["a.log", "tmp"]
    assert taken["skipped"] == [[f".dumontignore:{number}", "no pattern"] for number in (2, 3, 4, 5)]
    assert taken["files"] == 3


def test_whatever_has_the_ignore_file_s_name_nobody_waits_for_it(box: Box) -> None:
    (box.root / "kept").touch()
    os.mkfifo(box.root / ".dumontignore")
    assert host(box, "backup", box.root, URL)["skipped"] == [[".dumontignore", "fifo"]]

    (box.root / ".dumontignore").unlink()
    (box.root / ".dumontignore").mkdir()
    assert host(box, "backup", box.root, URL)["files"] == 1


def test_a_restore_in_place_removes_what_is_new_and_nothing_that_no_snapshot_has(box: Box) -> None:
    left_out = ("build/a", "build/deep/b", "src/n.log", ".cache/pip/wheel", "only/m.log")
    for name in ("kept", *left_out):
        (box.root / name).parent.mkdir(parents=True, exist_ok=True)
        (box.root / name).write_bytes(b"x")
    (box.root / ".dumontignore").write_text("build/\n*.log\n")
    host(box, "backup", box.root, URL)
    for name in ("new", "src/new", "only/new", "fresh/new"):
        (box.root / name).parent.mkdir(exist_ok=True)
        (box.root / name).write_bytes(b"y")
    (box.root / "fresh/z.log").write_bytes(b"z")

    restored = host(box, "restore", URL, box.root)

    there = sorted(str(path.relative_to(box.root)) for path in box.root.rglob("*") if path.is_file())
    assert there == sorted([".dumontignore", "kept", "fresh/z.log", *left_out])
    assert restored["removed"] == 4
