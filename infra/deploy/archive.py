"""The source archive: one zip for all functions, the same bytes for the same sources.

Google's builder wants `main.py` and `requirements.txt` at the root. It compiles what requirements.txt installs, which
`uv sync` over a pyproject.toml would not (measured: 0.6 s per cold start), so pyproject.toml stays out.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common.topology import FUNCTIONS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("common", "functions", "jobs")
LEFT_OUT = ("__pycache__", "node_modules", "common/cli", "common/client.py", "common/host", "functions/web")
"""What runs elsewhere, or is only the source of something that is in the archive."""
SUFFIXES_LEFT_OUT = (".pyc", ".pyo")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip can hold."""


@dataclass(frozen=True)
class Archive:
    data: bytes = field(repr=False)
    sha256: str
    files: int

    @property
    def id(self) -> str:
        """Short enough for a label's value at Google, which has at most 63 characters."""
        return self.sha256[:40]


def build(root: Path = ROOT) -> Archive:
    """Everything the functions need and nothing else."""
    contents = dict(_sources(root))
    contents["main.py"] = main_py().encode()
    contents["requirements.txt"] = (root / "infra/requirements/runtime.txt").read_bytes()
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as zipped:
        for name in sorted(contents):
            zipped.writestr(_member(name), contents[name])
    data = raw.getvalue()
    return Archive(data, hashlib.sha256(data).hexdigest(), len(contents))


def main_py() -> str:
    """The entry points, a line per function; each is loaded alone, for a function does not pay for the others."""
    lines = [f'    "{row.name}": "{row.folder}.{row.name}",' for row in FUNCTIONS]
    return "\n".join([_HEAD, *lines, _TAIL])


_HEAD = '''\
"""The entry points of all functions; made from the table of functions."""

import gc
import importlib

# By default garbage is looked for with every 700 new objects. While modules are loaded there is none, and the looks
# take a tenth of a cold start.
gc.set_threshold(150_000)

MODULES = {'''
_TAIL = """\
}


def __getattr__(name):
    if name not in MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(MODULES[name]), name)
"""


def _sources(root: Path) -> Iterator[tuple[str, bytes]]:
    for part in PARTS:
        for path in (root / part).rglob("*"):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not _is_left_out(name):
                yield name, path.read_bytes()


def _is_left_out(name: str) -> bool:
    within = any(name == part or name.startswith(f"{part}/") or f"/{part}/" in name for part in LEFT_OUT)
    return within or name.endswith(SUFFIXES_LEFT_OUT)


def _member(name: str) -> zipfile.ZipInfo:
    """Stored, not compressed: what a compressor makes of the same bytes may change with its version."""
    member = zipfile.ZipInfo(name, EPOCH)
    member.create_system = 3
    member.external_attr = 0o100644 << 16
    return member
