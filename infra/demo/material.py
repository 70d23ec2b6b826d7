"""A workspace of real material from this machine: its installed packages, a git checkout with history, fp16 tensors."""

from __future__ import annotations

import array
import hashlib
import itertools
import os
import random
import shutil
import stat
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.snapshots.limits import PART_PREFIX

FILES_MIN = 20_000
BYTES_MIN = 1 << 30
TENSOR_BYTES = 64 << 20
COMMITS = 5
COPIES_MAX = 20
EXCLUDED = {"__pycache__"}


@dataclass(frozen=True)
class Tree:
    files: int
    bytes: int
    digest: str
    """Over every path, kind, mode, mtime, link target, hardlink group and content."""


def write(root: Path, seed: int) -> None:
    """At least FILES_MIN files and BYTES_MIN bytes, with links, empty directories, a hole and a strange name."""
    rng = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    _packages(root / "packages")
    _checkout(root / "project", rng)
    _oddities(root / "odd")
    size = sum(path.lstat().st_size for path in _walk(root) if path.is_file() and not path.is_symlink())
    for index in range(-(-max(0, BYTES_MIN - size) // TENSOR_BYTES)):
        _tensor(root / "checkpoints" / f"step-{index:04}.fp16", rng)


def change(root: Path, seed: int) -> None:
    """Work goes on: a checkpoint is rewritten, sources change, something is deleted, something new appears."""
    rng = random.Random(seed)
    _tensor(root / "checkpoints" / "step-0000.fp16", rng)
    sources = sorted((root / "project").glob("*.py"))
    for path in sources[:20]:
        path.write_text(path.read_text() + f"\n# edited {rng.random()}\n")
    sources[-1].unlink()
    (root / "project" / "notes.md").write_text(f"run {rng.random()}\n" * 50)


def look(root: Path) -> Tree:
    digest, files, size = hashlib.sha256(), 0, 0
    first_of: dict[tuple[int, int], str] = {}
    for path in sorted(_walk(root), key=os.fsencode):
        status = path.lstat()
        name = os.fsencode(path.relative_to(root))
        facts = [name, oct(status.st_mode).encode(), str(status.st_mtime_ns).encode()]
        if stat.S_ISLNK(status.st_mode):
            facts = [name, b"link", os.fsencode(path.readlink())]
        elif stat.S_ISREG(status.st_mode):
            files, size = files + 1, size + status.st_size
            facts.append(_content(path))
            if status.st_nlink > 1:
                facts.append(first_of.setdefault((status.st_dev, status.st_ino), name.decode("latin-1")).encode())
        digest.update(b"\0".join(facts) + b"\n")
    return Tree(files, size, digest.hexdigest())


def _walk(root: Path) -> Iterator[Path]:
    """Without what hosts keep there for themselves."""
    for folder, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith(PART_PREFIX.decode())]
        for name in [*directories, *names]:
            yield Path(folder, name)


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _packages(root: Path) -> None:
    """Copies of this interpreter's packages, one after the other, until there are FILES_MIN files."""
    source = Path(sysconfig.get_path("purelib"))
    packages = sorted(path for path in source.iterdir() if path.is_dir() and path.name not in EXCLUDED)
    count = 0
    for copy, package in itertools.product(range(COPIES_MAX), packages):
        target = root / f"env-{copy}" / package.name
        shutil.copytree(package, target, symlinks=True, ignore=_only_small)
        count += sum(1 for path in _walk(target) if path.is_file())
        if count >= FILES_MIN:
            return


def _only_small(folder: str, names: list[str]) -> set[str]:
    """Sources, not the big binaries: the bytes come from tensors."""
    big = {name for name in names if Path(folder, name).is_file() and Path(folder, name).stat().st_size > 1 << 20}
    return big | EXCLUDED


def _checkout(root: Path, rng: random.Random) -> None:
    root.mkdir(parents=True)
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.com",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.com",
    }

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=root, env=env, check=True, capture_output=True)

    git("init", "-q")
    for commit in range(COMMITS):
        for index in range(40):
            (root / f"module_{index}.py").write_text("".join(f"x{n} = {rng.random()}\n" for n in range(50)))
        git("add", "-A")
        git("commit", "-q", "-m", f"step {commit}")


def _oddities(root: Path) -> None:
    root.mkdir()
    (root / "empty" / "dir").mkdir(parents=True)
    (root / "plain").write_bytes(b"one content, two names\n")
    os.link(root / "plain", root / "hardlink")
    (root / "relative").symlink_to("plain")
    (root / "dangling").symlink_to("/no/such/place")
    (root / "script.sh").write_text("#!/bin/sh\n")
    (root / "script.sh").chmod(0o755)
    (root / "secret").write_text("0600\n")
    (root / "secret").chmod(0o600)
    with open(root / "sparse", "wb") as file:
        file.seek(32 << 20)
        file.write(b"end")
    with open(os.fsencode(root) + b"/not-utf8-\xff\xfe", "wb") as file:
        file.write(b"a name that is not UTF-8\n")


def _tensor(path: Path, rng: random.Random) -> None:
    """Gaussian numbers as fp16: random mantissas under few exponents, as weights have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.randbytes(TENSOR_BYTES)
    values = array.array("B", noise)
    # the high byte of each fp16 is sign and exponent: squeeze it into the few values that real weights use
    table = bytes((byte & 0x83) | 0x28 | (byte & 0x04) for byte in range(256))
    values[1::2] = array.array("B", bytes(values[1::2]).translate(table))
    path.write_bytes(values.tobytes())
