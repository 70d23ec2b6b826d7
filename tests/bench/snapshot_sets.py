"""What is backed up: a model, code and data, each with the changes of an hour of work."""

from __future__ import annotations

import array
import os
import random
import shutil
import struct
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
WEIGHTS = Path(__file__).parents[2] / ".cache/weights/all_minilm_l6_v2/model.zip"
IMAGE_BYTES, NEW_IMAGES = 160_000, 20


@dataclass(frozen=True)
class Set:
    """A directory that is at version 1 or 2; `changes` holds both contents of each file that differs."""

    name: str
    root: Path
    changes: dict[str, tuple[bytes | None, bytes | None]]
    new_bytes: int
    """Of version 2: what no byte of version 1 is."""

    def become(self, version: int) -> None:
        for name, contents in self.changes.items():
            content, path = contents[version - 1], self.root / name
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())


def build(base: Path, *, scale: float) -> list[Set]:
    """`scale` 1.0 is the size that the figures are about: about 520 MiB, 28,000 files, 190 MiB."""
    return [_model(base / "model", scale), _code(base / "code", scale), _data(base / "data", scale)]


def _model(root: Path, scale: float) -> Set:
    """Real weights (fp32, and what half precision makes of them) beside Gaussian ones; the optimizer's state and a
    checkpoint are rewritten by every hour of work."""
    root.mkdir(parents=True)
    real = _real_weights()[: int(87 * scale) * MIB]
    (root / "encoder.safetensors").write_bytes(real)
    (root / "encoder.bf16").write_bytes(_as_bf16(real))
    (root / "encoder.fp16").write_bytes(_as_fp16(real))
    chance = random.Random(7)
    floats = array.array("f", (chance.gauss(0, 0.02) for _ in range(1 << 21))).tobytes()
    base = bytearray(_tensor(floats, int(192 * scale) * MIB, 2))
    edited = bytearray(base)
    edited[len(base) // 2 : len(base) // 2 + MIB] = os.urandom(MIB)
    changes: dict[str, tuple[bytes | None, bytes | None]] = {"base.safetensors": (bytes(base), bytes(edited))}
    rewritten = {name: int(mib * scale) * MIB for name, mib in (("checkpoint.pt", 32), ("optimizer.pt", 128))}
    for (name, size), item in zip(rewritten.items(), (2, 4), strict=True):
        changes[name] = (_tensor(floats, size, item), _tensor(floats, size, item))
    return _at_version_1(Set("model", root, changes, MIB + sum(rewritten.values())))


def _real_weights() -> bytes:
    """The tensors of all-MiniLM-L6-v2 (Apache 2.0), fp32. Raises FileNotFoundError without `make peers`."""
    with zipfile.ZipFile(WEIGHTS) as model:
        content = model.read("model.safetensors")
    return content[8 + int.from_bytes(content[:8], "little") :]


def _as_bf16(floats: bytes) -> bytes:
    short = bytearray(len(floats) // 2)
    short[0::2], short[1::2] = floats[2::4], floats[3::4]
    return bytes(short)


def _as_fp16(floats: bytes) -> bytes:
    pieces = (array.array("f", floats[at : at + MIB]) for at in range(0, len(floats), MIB))
    return b"".join(struct.pack(f"<{len(piece)}e", *piece) for piece in pieces)


def _tensor(floats: bytes, size: int, item_bytes: int) -> bytes:
    """Exponents of a Gaussian, mantissas that never repeat."""
    if item_bytes == 2:
        floats = _as_bf16(floats)
    shift = random.Random(size).randrange(0, len(floats), item_bytes)
    content = bytearray((floats[shift:] + floats[:shift]) * (size // len(floats) + 1))[:size]
    content[0::item_bytes] = os.urandom(len(content[0::item_bytes]))
    if item_bytes == 4:
        content[1::item_bytes] = os.urandom(len(content[1::item_bytes]))
    return bytes(content)


def _code(root: Path, scale: float) -> Set:
    """Copies of the packages that are installed here, until there are enough files."""
    wanted, files, round = int(28_000 * scale), 0, 0
    packages = sorted(path for path in Path(sysconfig.get_path("purelib")).iterdir() if path.is_dir())
    while files < wanted:
        for package in packages:
            if files < wanted:
                target = root / f"env{round}" / package.name
                shutil.copytree(package, target, symlinks=True, ignore=shutil.ignore_patterns("*.so", "*.so.*", "bin"))
                files += sum(len(names) for _, _, names in os.walk(target))
        round += 1
    edited = sorted(root.rglob("*.py"))[:: max(1, wanted // 60)][:40]
    line = b"\n# edited\n"
    changes: dict[str, tuple[bytes | None, bytes | None]] = {
        str(path.relative_to(root)): (path.read_bytes(), path.read_bytes() + line) for path in edited
    }
    return _at_version_1(Set("code", root, changes, len(line) * len(edited)))


def _data(root: Path, scale: float) -> Set:
    """Random bytes, as pictures and tables are to a compressor; a kilobyte is inserted into a table."""
    (root / "images").mkdir(parents=True)
    for number in range(int(800 * scale)):
        (root / f"images/{number:05}.jpg").write_bytes(os.urandom(IMAGE_BYTES))
    table, inserted = os.urandom(int(60 * scale) * MIB), os.urandom(1000)
    middle = len(table) // 2
    changes: dict[str, tuple[bytes | None, bytes | None]] = {
        f"images/new{number}.jpg": (None, os.urandom(IMAGE_BYTES)) for number in range(NEW_IMAGES)
    }
    changes["table.parquet"] = (table, table[:middle] + inserted + table[middle:])
    return _at_version_1(Set("data", root, changes, NEW_IMAGES * IMAGE_BYTES + len(inserted)))


def _at_version_1(made: Set) -> Set:
    made.become(1)
    return made
