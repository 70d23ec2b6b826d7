"""What is backed up: a model, code and data, each with the changes of an hour of work."""

from __future__ import annotations

import array
import os
import random
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Set:
    """A directory that is at version 1 or 2; `changes` holds both contents of each file that differs."""

    name: str
    root: Path
    changes: dict[str, tuple[bytes | None, bytes | None]]

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

    @property
    def new_bytes(self) -> int:
        """Of version 2: the whole of rewritten and new files; an edit in place counts by what differs."""
        total = 0
        for before, after in self.changes.values():
            if after is not None:
                same = sum(1 for a, b in zip(_blocks(before), _blocks(after), strict=False) if a == b) if before else 0
                total += len(after) - same * MIB if len(after) > MIB else len(after)
        return total


def build(base: Path, *, scale: float) -> list[Set]:
    """`scale` 1.0 is the size that the figures are about: about 520 MiB, 28,000 files, 190 MiB."""
    return [_model(base / "model", scale), _code(base / "code", scale), _data(base / "data", scale)]


def _model(root: Path, scale: float) -> Set:
    """Gaussian weights in bf16 and fp32; the optimizer's state and a checkpoint are rewritten by every hour of work."""
    root.mkdir(parents=True)
    chance = random.Random(7)
    floats = array.array("f", (chance.gauss(0, 0.02) for _ in range(1 << 21))).tobytes()
    sizes = {"base.safetensors": (192, 2), "encoder.bin": (200, 4)}
    for name, (mib, item) in sizes.items():
        (root / name).write_bytes(_tensor(floats, int(mib * scale) * MIB, item))
    base = bytearray((root / "base.safetensors").read_bytes())
    edited = bytearray(base)
    edited[len(base) // 2 : len(base) // 2 + MIB] = os.urandom(MIB)
    changes: dict[str, tuple[bytes | None, bytes | None]] = {"base.safetensors": (bytes(base), bytes(edited))}
    for name, mib, item in (("checkpoint.pt", 32, 2), ("optimizer.pt", 100, 4)):
        size = int(mib * scale) * MIB
        changes[name] = (_tensor(floats, size, item), _tensor(floats, size, item))
    return _at_version_1(Set("model", root, changes))


def _tensor(floats: bytes, size: int, item_bytes: int) -> bytes:
    """Exponents of a Gaussian, mantissas that never repeat."""
    if item_bytes == 2:
        short = bytearray(len(floats) // 2)
        short[0::2], short[1::2] = floats[2::4], floats[3::4]
        floats = bytes(short)
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
    changes: dict[str, tuple[bytes | None, bytes | None]] = {
        str(path.relative_to(root)): (path.read_bytes(), path.read_bytes() + b"\n# edited\n") for path in edited
    }
    return _at_version_1(Set("code", root, changes))


def _data(root: Path, scale: float) -> Set:
    """Random bytes, as pictures and tables are to a compressor; a kilobyte is inserted into a table."""
    (root / "images").mkdir(parents=True)
    for number in range(int(800 * scale)):
        (root / f"images/{number:05}.jpg").write_bytes(os.urandom(160_000))
    table = os.urandom(int(60 * scale) * MIB)
    middle = len(table) // 2
    changes: dict[str, tuple[bytes | None, bytes | None]] = {
        f"images/new{number}.jpg": (None, os.urandom(160_000)) for number in range(20)
    }
    changes["table.parquet"] = (table, table[:middle] + os.urandom(1000) + table[middle:])
    return _at_version_1(Set("data", root, changes))


def _at_version_1(made: Set) -> Set:
    made.become(1)
    return made


def _blocks(content: bytes | None) -> list[bytes]:
    return [content[at : at + MIB] for at in range(0, len(content or b""), MIB)] if content else []
