"""The measurement of a machine: from its file, over a real loopback line, bounded in bytes and seconds."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from common.adapters.s3 import S3
from common.domain.host import Attest
from common.host import attest
from common.host.serve import Measurement
from tests.snapshots_fixtures import objects, s3_on_loopback

__all__ = ["objects", "s3_on_loopback"]
SIZE = Attest.PROBE_UPLOAD_BYTES


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def test_a_simulated_machine_says_what_it_has_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    file.write_text('{"gpu_models": ["NVIDIA T4"], "gpu_count": 1, "disk_bytes": 5}')

    assert attest.hardware(file, tmp_path) == Attest(gpu_models=["NVIDIA T4"], gpu_count=1, disk_bytes=5)


@pytest.mark.parametrize("text", ["", "{", '{"gpu_count": "many"}', "[]"])
def test_a_file_that_says_nothing_sensible_leaves_everything_unknown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(text)

    assert attest.hardware(file, tmp_path) == Attest()
    assert attest.hardware(tmp_path / "missing", tmp_path) == Attest()


def test_a_machine_of_its_own_reports_its_disk_and_without_a_driver_no_gpu_is_unknown(tmp_path: Path) -> None:
    seen = attest.hardware(None, tmp_path)

    assert seen.disk_bytes
    assert seen.cpu_cores
    assert seen.gpu_count is None or seen.gpu_models


def test_the_line_is_measured_against_the_object_store(objects: S3, http: httpx.Client) -> None:
    objects.put("releases/x", bytes(4 << 20))
    seen = attest.line(
        Attest(),
        http,
        download_url=objects.presign_get("releases/x", 60),
        upload_url=objects.presign_put("probes/upload", SIZE, 60),
        clock=time.monotonic,
    )

    assert seen.download_mbit_s
    assert seen.download_mbit_s > 50
    assert seen.upload_mbit_s
    assert seen.upload_mbit_s > 50
    assert seen.probe_s < 5
    assert next(objects.list("probes/upload")).size == SIZE


def test_a_url_for_the_probe_takes_no_other_size_and_no_other_key(objects: S3, http: httpx.Client) -> None:
    url = objects.presign_put("probes/upload", 1000, 60)

    assert http.put(url, content=b"x" * 1001).status_code == 403
    assert http.put(url.replace("probes/upload", "probes/other"), content=b"x" * 1000).status_code == 403
    assert http.put(url, content=b"x" * 1000).is_success


def test_a_store_that_refuses_or_is_not_there_leaves_the_line_unknown(objects: S3, http: httpx.Client) -> None:
    seen = attest.line(
        Attest(),
        http,
        download_url=objects.presign_get("releases/missing", 60),
        upload_url="http://127.0.0.1:9/nobody",
        clock=time.monotonic,
    )

    assert (seen.download_mbit_s, seen.upload_mbit_s) == (None, None)


def test_a_line_known_already_is_not_probed_again(http: httpx.Client) -> None:
    known = Attest(download_mbit_s=3.0, upload_mbit_s=2.0)
    seen = attest.line(
        known, http, download_url="http://127.0.0.1:9", upload_url="http://127.0.0.1:9", clock=lambda: 0.0
    )

    assert (seen.download_mbit_s, seen.upload_mbit_s) == (3.0, 2.0)


@contextmanager
def trickle(piece: bytes, pieces: int) -> Iterator[str]:
    """A server that sends, on a clock of the test's own, one small piece after another."""
    from werkzeug.serving import make_server

    def app(_environ: object, start: object):
        start("200 OK", [("Content-Length", str(len(piece) * pieces))])  # type: ignore[operator]
        return (piece for _ in range(pieces))

    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_slow_line_is_given_up_after_its_seconds_and_measured_by_what_came(http: httpx.Client) -> None:
    ticks = itertools.count(step=1)
    with trickle(bytes(attest.PROBE_PIECE_BYTES), 40) as url:
        speed = attest.download_mbit_s(http, url, clock=lambda: float(next(ticks)))

    assert speed
    assert speed < 2


def test_the_measurement_never_blocks_who_asks_for_it(tmp_path: Path) -> None:
    measurement = Measurement(None, tmp_path, download_url="http://127.0.0.1:9/", upload_url=None)
    began = time.monotonic()
    first = measurement()
    asked_s = time.monotonic() - began
    measurement._thread.join(timeout=10)

    assert first is None or first.disk_bytes
    assert asked_s < 0.5
    done = measurement()
    assert done
    assert done.download_mbit_s is None
