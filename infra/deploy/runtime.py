"""A clean environment that holds what the functions are deployed with, and the unpacked archive beside it."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from infra.deploy.archive import ROOT, Archive

CACHE = ROOT / ".cache" / "runtime"
REQUIREMENTS = ROOT / "infra/requirements/runtime.txt"
INSTALL_WITHIN_S = 600


def environment() -> Path:
    """The interpreter of a virtual environment with nothing but `requirements.txt`; made once per content.

    As Google's builder does, what is installed is compiled to bytecode.
    """
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = CACHE / digest
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*install, "--compile", "--require-hashes", "-r", str(REQUIREMENTS)], check=True, timeout=INSTALL_WITHIN_S
        )
        (folder / ".ready").touch()
    return folder / "bin/python"


def unpack(archive: Archive, folder: Path, python: Path) -> Path:
    """The archive's files in a folder of their own, compiled as Google's builder compiles them."""
    target = folder / archive.id
    if not (target / ".unpacked").exists():
        with zipfile.ZipFile(io.BytesIO(archive.data)) as zipped:
            zipped.extractall(target)
        subprocess.run([str(python), "-m", "compileall", "-q", str(target)], check=True)
        (target / ".unpacked").touch()
    return target


if __name__ == "__main__":
    print(json.dumps({"python": str(environment())}))
