"""What a snapshot is: the tree's entries, the chunks that hold their bytes, and the packs that hold the chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.domain.snapshot import Version

Kind = Literal["file", "dir", "symlink", "hardlink"]
Codec = Literal["raw", "lz4"]


class Extent(NamedTuple):
    """`length` bytes of a file from offset `at` = those of `chunk` from `start`. What no extent covers is a hole."""

    at: int
    chunk: str
    start: int
    length: int


class Chunk(NamedTuple):
    """`stored` bytes of a pack from `offset`, which decode to `plain` bytes whose BLAKE3 is the chunk's id."""

    pack: str
    offset: int
    stored: int
    plain: int
    codec: Codec


class Pack(NamedTuple):
    """One object, named by the BLAKE3 of its bytes; `md5` is what a store computes of a single-part upload."""

    size: int
    md5: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the tree, relative to the root; the root itself is `b""`. Names are bytes, as the kernel has them."""

    path: bytes
    kind: Kind
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    sum: str = ""
    """BLAKE3 (16 bytes, hex) of a file's extents in order."""
    extents: tuple[Extent, ...] = ()
    target: bytes = b""
    """A symlink's text; a hardlink's other name, which is a file of the same manifest."""
    torn: bool = False
    """The file changed whenever it was read: its parts may be of different moments."""

    @property
    def parent(self) -> bytes:
        return self.path.rpartition(b"/")[0]

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]

    @property
    def data_bytes(self) -> int:
        return sum(extent.length for extent in self.extents)

    @property
    def is_sparse(self) -> bool:
        return self.data_bytes < self.size


@dataclass(frozen=True)
class Manifest:
    """One snapshot. A directory stands before what it holds; the root is the first entry."""

    prefix: str
    """The instance's place in the bucket: empty, or ending in a slash."""
    version: Version
    taken_at: str
    entries: tuple[Entry, ...]
    chunks: dict[str, Chunk]
    packs: dict[str, Pack]
    key: str = ""
    """Where it is stored; empty until it is sealed."""

    @property
    def files(self) -> int:
        return sum(entry.kind == "file" for entry in self.entries)

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries)

    @property
    def torn(self) -> list[str]:
        return [printable(entry.path) for entry in self.entries if entry.torn]

    def first_chunk_of(self, pack: str) -> str:
        """The chunk by which a missing or damaged pack is reported."""
        held = [(chunk.offset, name) for name, chunk in self.chunks.items() if chunk.pack == pack]
        return min(held)[1]


def pack_key(prefix: str, name: str) -> str:
    return f"{prefix}packs/{name}"


def printable(path: bytes) -> str:
    """For people and logs: bytes that are not UTF-8 are shown as escapes."""
    return path.decode("utf-8", "backslashreplace")
