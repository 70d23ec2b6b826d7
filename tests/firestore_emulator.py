"""Google's own Firestore emulator as a process of ours: for tests, and for benches that run without pytest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.ports import fresh_ports

EMULATOR_START_S = 60.0
JAR = Path("platform/cloud-firestore-emulator/cloud-firestore-emulator.jar")
SYSTEM_SDK = Path("/usr/lib/google-cloud-sdk")
JAVA_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"


class NoEmulator(Exception):
    """This machine has none; str() says what is missing."""


@contextmanager
def running() -> Iterator[str]:
    """`host:port`; killed with its whole process group at the end. Raises `NoEmulator`."""
    jar, java = _jar(), shutil.which("java")
    if jar is None or java is None:
        raise NoEmulator(
            f"no {'java' if jar else 'Firestore emulator jar (set FIRESTORE_EMULATOR_JAR)'} on this machine"
        )
    (port,) = fresh_ports(1)
    command = [java, *JAVA_OPTIONS, "-cp", str(jar), MAIN_CLASS, "start", "--host=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True
    )
    try:
        _wait_until(lambda: _answers(port), process)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _jar() -> Path | None:
    gcloud = shutil.which("gcloud")
    places = [Path(gcloud).resolve().parents[1] / JAR] if gcloud else []
    named = os.environ.get("FIRESTORE_EMULATOR_JAR")
    places = [Path(named)] if named else [*places, SYSTEM_SDK / JAR]
    return next((place for place in places if place.is_file()), None)


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + EMULATOR_START_S
    while not ready():
        assert process.poll() is None, f"the emulator ended with {process.returncode}"
        assert time.monotonic() < deadline, f"the emulator was not up after {EMULATOR_START_S} s"
        time.sleep(0.1)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
