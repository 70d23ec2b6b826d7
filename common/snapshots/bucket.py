"""The object store as a host sees it: the calls that the engine needs. Packs come and go by s5cmd, the rest by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ObjectStoreError
from common.snapshots.transfer import (
    MISSING,
    REQUEST_RETRIES,
    SINGLE_PART_MD5,
    Endpoint,
    environment,
    program,
    transfer,
)
from common.snapshots.wire import Row, Wire

if TYPE_CHECKING:
    from common.ports import Stored

CALL_S = 600
READ_BYTES = 1 << 20


class Bucket:
    """One bucket; packs pass through `folder`, which is emptied again."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._wire = Wire(endpoint)

    def get(self, key: str) -> bytes:
        """The whole object, which is no pack; raises `ObjectMissing`."""
        return self._wire.get(key)

    def read(self, key: str) -> Iterator[bytes]:
        """A pack's bytes in pieces of at most 1 MiB; raises `ObjectMissing`."""
        from tempfile import TemporaryDirectory

        with TemporaryDirectory(dir=self._folder) as name:
            with transfer(self._endpoint, Path(name)) as move:
                move.get(key, "object")
                list(move.finished())
            with (Path(name) / "object").open("rb") as file:
                while piece := file.read(READ_BYTES):
                    yield piece

    def put(self, key: str, data: bytes) -> None:
        """An object that is small and no pack."""
        self._wire.put(key, data)

    def list(self, prefix: str) -> Iterator[Stored]:
        """Every object below the prefix, in key order."""
        from common.ports import Stored

        for row in self.dated(prefix):
            md5 = SINGLE_PART_MD5.fullmatch(row.etag)
            yield Stored(row.key, row.size, md5[1] if md5 else None)

    def dated(self, prefix: str) -> Iterator[Row]:
        """The same with the time at which the store took each."""
        return self._wire.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; deleting what is not there succeeds."""
        for first in range(0, len(keys), 500):
            self._remove([f"s3://{self._endpoint.bucket}/{key}" for key in keys[first : first + 500]])

    def _remove(self, places: Sequence[str]) -> None:
        """Raises `ObjectStoreError` unless s5cmd says that all is well, or nothing is there."""
        options = ["--json", "--endpoint-url", self._endpoint.url, "--retry-count", str(REQUEST_RETRIES)]
        try:
            done = subprocess.run(
                [program(self._endpoint), *options, "rm", *places],
                env=environment(self._endpoint),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CALL_S,
            )
        except subprocess.TimeoutExpired:
            raise ObjectStoreError(f"s5cmd rm did not end within {CALL_S} s") from None
        said = [json.loads(line) for line in done.stdout.splitlines() + done.stderr.splitlines() if line[:1] == b"{"]
        errors = [str(line["error"]) for line in said if "error" in line]
        if errors and all(MISSING.search(error) for error in errors):
            return
        if errors or done.returncode:
            wrong = errors[0] if errors else done.stderr.decode(errors="replace")[-300:]
            raise ObjectStoreError(f"s5cmd rm: {wrong}")
