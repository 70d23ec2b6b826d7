"""How long a snapshot takes: 20,000 small files and 1 GiB of mixed data, against rclone on loopback.

Run: python -m tests.bench.bench_snapshots [directory]
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from common.adapters.s3 import S3
from common.snapshots import engine
from infra.demo.s3_server import s3_server

SMALL_FILES = 20_000
LARGE_FILES = 16
LARGE_BYTES = 64 << 20
KEY = b"k" * 32


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=where) as folder, s3_server(Path(folder) / "store") as server:
        base = Path(folder)
        small, large = build(base / "workspace")
        print(f"{SMALL_FILES} small files of {small >> 20} MiB, {LARGE_FILES} large ones of {large >> 20} MiB")
        play(base, server)


def build(root: Path) -> tuple[int, int]:
    """Source-like small files; large ones of which three quarters do not compress."""
    chance = random.Random(1)
    words = [chance.randbytes(4).hex() for _ in range(4000)]
    small = 0
    for number in range(SMALL_FILES):
        path = root / f"src/{number % 200}/{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        small += path.write_text(" ".join(chance.choices(words, k=chance.randrange(20, 1000))))
    (root / "models").mkdir()
    for number in range(LARGE_FILES):
        with (root / f"models/{number}.bin").open("wb") as file:
            for _ in range(LARGE_BYTES // (1 << 22)):
                file.write(os.urandom(3 << 20) + b"0123456789abcdef" * (1 << 16))
    return small, LARGE_FILES * LARGE_BYTES


def play(base: Path, server) -> None:
    endpoint = engine.Endpoint(server.endpoint, server.bucket, server.access_key, server.secret_key)
    objects = S3(
        endpoint=server.endpoint,
        bucket=server.bucket,
        key_id=server.access_key,
        secret=server.secret_key,
        region="us-east-1",
    )
    same = {"prefix": "bench/", "instance_key": KEY, "endpoint": endpoint, "clock": time.monotonic}

    def take(seq: int, previous: engine.Manifest | None) -> engine.Taken:
        taken = engine.take(
            base / "workspace",
            epoch=1,
            seq=seq,
            taken_at=datetime.now(UTC),
            previous=previous,
            state_dir=base / "state",
            **same,
        )
        print(
            f"take {seq}: {taken.seconds:.2f} s, {taken.new_bytes >> 20} MiB new, {taken.stored_bytes >> 20} MiB sent"
        )
        return taken

    def verify(taken: engine.Taken, proven: tuple[str, ...]) -> engine.Verified:
        started = time.monotonic()
        verified = engine.verify(objects, taken.manifest_key, prefix="bench/", instance_key=KEY, proven=proven)
        print(
            f"verify: {time.monotonic() - started:.2f} s, proof {verified.proof}, {len(verified.packs_new)} new packs"
        )
        return verified

    first = take(1, None)
    proven = verify(first, ()).packs_new
    (base / "workspace/src/0/0.py").write_text("changed")
    second = take(2, first.manifest)
    verify(second, proven)
    for name, what in (("copy", "restore"), ("copy", "restore again")):
        restored = engine.restore(second.manifest_key, base / name, state_dir=base / "state2", **same)
        print(f"{what}: {restored.seconds:.2f} s, {restored.bytes_fetched >> 20} MiB fetched")
    objects.close()


if __name__ == "__main__":
    main()
