"""Builds the host's image from its Containerfile and the bundle, where no registry can be reached from a base of ours.

The base is what FROM names. Where it is not here and cannot be pulled, `debootstrap` makes one from Debian's mirror,
and it is imported under that very name: one Containerfile serves both.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.gpu_host import bundle

CONTAINERFILE = Path(__file__).with_name("Containerfile")
CACHE = bundle.ROOT / ".cache" / "container"
NAME = "localhost/dumont-host"
PROGRAMS = ("podman", "buildah", "runc", "debootstrap")
STORAGE = ("--storage-driver", "vfs")
"""It needs nothing of the kernel; overlay file systems cannot be nested everywhere."""
PULL_S, BUILD_S = 60, 600
ULIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
"""The runtime's defaults are higher than a machine in a machine may grant."""


class CannotBuild(Exception):
    """The sentence says what is missing."""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def build(containerfile: Path = CONTAINERFILE, image: str = NAME) -> str:
    """The image's name, its content in the tag; built once. Raises `CannotBuild`."""
    if missing := missing_programs():
        raise CannotBuild(f"these programs are not installed: {', '.join(missing)}")
    made = bundle.build()
    tag = hashlib.sha256(containerfile.read_bytes() + made.sha256.encode()).hexdigest()[:12]
    name = f"{image}:{tag}"
    if not _exists(name):
        require_base()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy2(made.path, Path(folder) / "bundle.tgz")
            shutil.copy2(containerfile, Path(folder) / "Containerfile")
            _do(["buildah", *STORAGE, "bud", "--isolation", "chroot", "--pull-never", "-t", name, folder], BUILD_S)
        _forget_older(name, image)
    return name


def run_command(image: str, words: Sequence[str], *options: str) -> list[str]:
    """What runs it: runc, for crun wants more of cgroups and limits than a machine in a machine has."""
    runtime = shutil.which("runc") or "runc"
    return ["podman", *STORAGE, "--runtime", runtime, "run", "--rm", *ULIMITS, *options, image, *words]


def base() -> str:
    """What FROM names."""
    (name,) = re.findall(r"^FROM (\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    return str(name)


def require_base() -> str:
    """Its name, when it is here. Raises `CannotBuild`."""
    name = base()
    if not _exists(name) and not _pulled(name):
        _do(["podman", *STORAGE, "import", "-q", str(_bootstrapped()), name], BUILD_S)
    return name


def _pulled(name: str) -> bool:
    try:
        done = subprocess.run(["podman", *STORAGE, "pull", "-q", name], capture_output=True, timeout=PULL_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _bootstrapped() -> Path:
    """A minimal Debian as a tar, made once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tar = CACHE / "bookworm.tar"
    if not tar.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            root = Path(folder) / "root"
            _do(["debootstrap", "--variant=minbase", "bookworm", str(root), _mirror()], BUILD_S)
            shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
            new = Path(folder) / tar.name  # whoever makes it at the same time makes his own
            _do(["tar", "-C", str(root), "-cf", str(new), "."], BUILD_S)
            new.rename(tar)
    return tar


def _mirror() -> str:
    """The one that this machine's apt uses."""
    said = _do(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(CODENAME)"], PULL_S)
    found = [line.partition("|")[0] for line in said.splitlines() if line.endswith("|bookworm")]
    if not found:
        raise CannotBuild("apt knows no mirror of Debian 12, and the base image cannot be pulled")
    return found[0]


def _exists(image: str) -> bool:
    return subprocess.run(["podman", *STORAGE, "image", "exists", image], capture_output=True).returncode == 0


def _forget_older(name: str, image: str) -> None:
    """Each holds half a gigabyte; one that somebody runs stays."""
    listed = _do(["podman", *STORAGE, "images", "--format", "{{.Repository}}:{{.Tag}}", image], PULL_S).split()
    for old in listed:
        if old != name:
            subprocess.run(["podman", *STORAGE, "rmi", old], capture_output=True, timeout=PULL_S)


def _do(command: list[str], timeout_s: int) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise CannotBuild(f"{command[0]} did not end within {timeout_s} s") from None
    if done.returncode:
        raise CannotBuild(f"{command[0]} failed: {(done.stderr or done.stdout)[-600:]}")
    return done.stdout


if __name__ == "__main__":
    print(json.dumps({"image": build()}))
