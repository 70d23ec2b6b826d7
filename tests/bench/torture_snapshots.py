"""Kills backup, restore and prune at random moments, and flips a bit in every object; what follows must be whole.

Run: python -m tests.bench.torture_snapshots [KILLS=300] [SEED=1]. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.demo.s3_server import S3Server, s3_server
from tests.snapshots_fixtures import tree

LIMIT_S = 120
KEEP = ("--keep-last", "3", "--keep-hourly", "0", "--keep-daily", "0", "--keep-weekly", "0")
LONGEST_S = {"backup": 1.2, "restore": 1.2, "prune": 0.9}
"""Of an undisturbed run here; a kill comes at a random moment of it."""


def main() -> None:
    words = dict(word.split("=") for word in sys.argv[1:])
    kills, chance = int(words.get("KILLS", "300")), random.Random(int(words.get("SEED", "1")))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base, s3_server(Path(base) / "store") as server:
        torture = Torture(Path(base), server, chance)
        survived = sum(torture.kill_once(number) for number in range(kills))
        found = torture.flip_every_object()
    figures = {"kills": kills, "kills_ok": survived, "corrupt_n": len(found), "corrupt_found": sum(found)}
    print(json.dumps(figures))
    if survived != kills or not all(found):
        raise SystemExit(1)


@dataclass
class Torture:
    """One repository that lives through it all, and a workspace that changes between two kills."""

    base: Path
    server: S3Server
    chance: random.Random
    kinds: list[str] = field(default_factory=lambda: ["backup", "backup", "restore", "prune"])

    def __post_init__(self) -> None:
        self.root.mkdir()
        for number in range(400):
            path = self.root / f"d{number % 9}" / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.chance.randbytes(self.chance.randrange(20_000)))
        for number in range(3):
            (self.root / f"large{number}").write_bytes(self.chance.randbytes(36 << 20))
        self.host("backup", self.root, self.url)

    @property
    def root(self) -> Path:
        return self.base / "workspace"

    @property
    def url(self) -> str:
        return f"s3://{self.server.bucket}/torture"

    def kill_once(self, number: int) -> bool:
        """Kill one verb somewhere, run it again, and compare: the newest snapshot restores byte for byte."""
        self._change()
        verb = self.chance.choice(self.kinds)
        words: list[object] = {
            "backup": ["backup", self.root, self.url],
            "restore": ["restore", self.url, self.base / "copy"],
            "prune": ["prune", self.url, *KEEP],
        }[verb]
        if verb == "restore":
            self.host("backup", self.root, self.url)
        after_s = self.chance.random() * LONGEST_S[verb]
        self._start_and_kill(words, after_s)
        self.host(*words)
        self.host("backup", self.root, self.url)
        self.host("restore", self.url, self.base / "copy")
        is_same = tree(self.base / "copy") == tree(self.root)
        is_sound = number % 10 != 0 or self.host("verify", self.url)["ok"]
        if self.chance.random() < 0.3:
            shutil.rmtree(self.base / "copy")
        print(f"{number}: {verb} killed after {after_s:.2f} s: {is_same and is_sound}", file=sys.stderr, flush=True)
        return is_same and bool(is_sound)

    def flip_every_object(self) -> list[bool]:
        """One bit of each object in turn: verify must refuse it by name.

        Not of packs that a killed backup left: no snapshot needs them, and nothing reads them until they are pruned.
        """
        self.host("prune", self.url, *KEEP)
        store = self.base / "store" / self.server.bucket
        unneeded = {key for marks in (store / "torture/prune").iterdir() for key in json.loads(marks.read_bytes())}
        found = []
        for path in sorted((store / "torture").rglob("*")):
            if not path.is_file() or path.parent.name == "prune":  # marks only delay a removal
                continue
            if str(path.relative_to(store)) in unneeded:
                continue
            content = bytearray(path.read_bytes())
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            whole = path.read_bytes()
            path.write_bytes(content)
            found.append(self._run("verify", self.url).returncode in (3, 4))
            path.write_bytes(whole)
        return found

    def host(self, *words: object) -> dict[str, Any]:
        done = self._run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout))

    def _run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(words), env=self._env(), capture_output=True, text=True, timeout=LIMIT_S)

    def _start_and_kill(self, words: list[object], after_s: float) -> None:
        """The whole engine at once: its workers and s5cmd must die with it."""
        process = subprocess.Popen(
            self._command(words), env=self._env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _command(self, words: Any) -> list[str]:
        program = [sys.executable, "-m", "common.host.repository"]
        return [*program, *map(str, words), "--json", "--home", str(self.base / "home")]

    def _change(self) -> None:
        for _ in range(20):
            path = self.root / f"d{self.chance.randrange(9)}" / f"{self.chance.randrange(500)}.txt"
            path.write_bytes(self.chance.randbytes(self.chance.randrange(20_000)))
        with (self.root / f"large{self.chance.randrange(3)}").open("r+b") as file:
            file.seek(self.chance.randrange(35 << 20))
            file.write(self.chance.randbytes(1 << 20))

    def _env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "DUMONT_SNAPSHOT_KEY": "torture",
        }


if __name__ == "__main__":
    main()
