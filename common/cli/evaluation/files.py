"""Every readable file below a folder, whatever it is packed in; what cannot be read is listed, never guessed."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Of one file, unpacked: a larger one is skipped (a bomb, or not a series)."""
MAX_UNPACKED_BYTES = 4 * MAX_FILE_BYTES
"""Of all members of one archive together."""
UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeDecodeError, ValueError)
"""What broken gzip, tar and text raise."""
TAR_MAGIC = (257, b"ustar")


@dataclass(frozen=True)
class File:
    """One file, unpacked."""

    path: str
    """Below the root; of a member: the archive, then its path in it."""
    full_path: str
    """The same from the root of the file system."""
    text: str
    archive: str = ""
    """Path of the archive that holds it; empty for a plain file."""

    @property
    def folder(self) -> str:
        """Where it counts: the archive, or the folder below the root."""
        return self.archive or parent(self.path)


@dataclass(frozen=True)
class Skipped:
    """What was not read, and why."""

    path: str
    reason: str


def parent(path: str) -> str:
    """The folder of a path; "." for the root."""
    return path.rpartition("/")[0] or "."


def below(root: Path) -> Iterator[File | Skipped]:
    """In order of their paths. Archives (.tar, also gzipped) count as folders; `._*` and hidden files are passed over.

    Formats are told by content, not by name. Links are not followed.
    """
    for path in sorted(root.rglob("*")):
        shown = path.relative_to(root).as_posix()
        if not path.is_file() or path.is_symlink() or _is_hidden(shown):
            continue
        try:
            yield from _opened(path, shown)
        except UNREADABLE as error:
            yield Skipped(shown, _reason(error))


def _opened(path: Path, shown: str) -> Iterator[File | Skipped]:
    full = path.resolve().as_posix()
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content = cast("IO[bytes]", gzip.GzipFile(fileobj=raw) if is_gzip else raw)
        head = content.read(TAR_MAGIC[0] + len(TAR_MAGIC[1]))
        content.seek(0)
        if head.endswith(TAR_MAGIC[1]) and len(head) == TAR_MAGIC[0] + len(TAR_MAGIC[1]):
            yield from _members(content, shown, full)
        else:
            yield File(shown, full, _text(content))


def _members(content: IO[bytes], shown: str, full: str) -> Iterator[File | Skipped]:
    unpacked = 0
    with tarfile.open(fileobj=content, mode="r|") as archive:
        for member in archive:
            if not member.isfile() or _is_hidden(member.name):
                continue
            path = f"{shown}/{member.name}"
            unpacked += member.size
            opened = archive.extractfile(member)
            if opened is None or unpacked > MAX_UNPACKED_BYTES:
                yield Skipped(path, f"the archive holds more than {MAX_UNPACKED_BYTES} bytes")
                return
            try:
                yield File(path, f"{full}/{member.name}", _text(opened), shown)
            except ValueError as error:
                yield Skipped(path, _reason(error))


def _text(content: IO[bytes]) -> str:
    """UTF-8 with or without a mark; raises ValueError on anything else or on too much of it."""
    data = content.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    if b"\0" in data[: io.DEFAULT_BUFFER_SIZE]:
        raise ValueError("not a text file")
    return data.decode("utf-8-sig")


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
