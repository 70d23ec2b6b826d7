"""The object store as a host sees it: the calls that the engine needs, made by s5cmd alone."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from common.errors import ObjectMissing, ObjectStoreError
from common.ports import Stored
from common.snapshots.transfer import (
    MISSING,
    REQUEST_RETRIES,
    SINGLE_PART_MD5,
    Endpoint,
    environment,
    program,
    transfer,
)

CALL_S = 600
READ_BYTES = 1 << 20
EMPTY = "no object found"


class Bucket:
    """One bucket; objects pass through `folder`, which is emptied again."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self._endpoint = endpoint
        self._folder = folder

    def get(self, key: str) -> bytes:
        """The whole object; raises `ObjectMissing`."""
        return b"".join(self.read(key))

    def read(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces of at most 1 MiB; raises `ObjectMissing`."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            with transfer(self._endpoint, Path(name)) as move:
                move.get(key, "object")
                list(move.finished())
            with (Path(name) / "object").open("rb") as file:
                while piece := file.read(READ_BYTES):
                    yield piece

    def put(self, key: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            (Path(name) / "object").write_bytes(data)
            with transfer(self._endpoint, Path(name)) as move:
                move.put("object", key)
                list(move.finished())

    def list(self, prefix: str) -> Iterator[Stored]:
        """Every object below the prefix, in key order."""
        yield from (stored for stored, _ in self.dated(prefix))

    def dated(self, prefix: str) -> Iterator[tuple[Stored, datetime]]:
        """The same with the time at which the store took each."""
        for said in self._call("ls", f"s3://{self._endpoint.bucket}/{prefix}*"):
            if said.get("type") == "directory":
                continue
            key = str(said["key"]).removeprefix(f"s3://{self._endpoint.bucket}/")
            md5 = SINGLE_PART_MD5.fullmatch(str(said.get("etag", "")))
            at = datetime.fromisoformat(str(said["last_modified"]))
            yield Stored(key, int(str(said["size"])), md5[1] if md5 else None), at

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; deleting what is not there succeeds."""
        for first in range(0, len(keys), 500):
            self._call("rm", *(f"s3://{self._endpoint.bucket}/{key}" for key in keys[first : first + 500]))

    def _call(self, *words: str) -> Sequence[dict[str, object]]:
        """What s5cmd says, line by line; raises `ObjectStoreError` unless all is well, or nothing is there."""
        options = ["--json", "--endpoint-url", self._endpoint.url, "--retry-count", str(REQUEST_RETRIES)]
        try:
            done = subprocess.run(
                [program(self._endpoint), *options, *words],
                env=environment(self._endpoint),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CALL_S,
            )
        except subprocess.TimeoutExpired:
            raise ObjectStoreError(f"s5cmd {words[0]} did not end within {CALL_S} s") from None
        said = [
            json.loads(line) for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith(b"{")
        ]
        errors = [str(line["error"]) for line in said if "error" in line]
        if EMPTY in "".join(errors) or (words[0] == "rm" and errors and all(MISSING.search(error) for error in errors)):
            return ()
        if errors or done.returncode:
            wrong = errors[0] if errors else done.stderr.decode(errors="replace")[-300:]
            raise (ObjectMissing if MISSING.search(wrong) else ObjectStoreError)(f"s5cmd {words[0]}: {wrong}")
        return said
