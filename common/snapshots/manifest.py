"""What a snapshot is: the tree's entries, the chunks that hold their bytes, and the packs that hold the chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.domain.version import Version

Kind = Literal["file", "dir", "symlink", "hardlink"]
Codec = Literal["raw", "lz4", "zstd", "bits2", "bits4", "floats2", "floats4"]
"""How a chunk's bytes are written: as they are, by LZ4, by Zstandard, or bit-shuffled as 2- or 4-byte items and LZ4."""

TAG_BYTES = 16
"""What AES-GCM adds to each chunk of a sealed pack."""
NOBODY = -1
"""The owner is not known: nothing is said of it, and nothing changed."""


class Extent(NamedTuple):
    """`length` bytes of a file from offset `at` = those of `chunk` from `start`. What no extent covers is a hole."""

    at: int
    chunk: str
    start: int
    length: int


class Chunk(NamedTuple):
    """`stored` bytes of a pack from `offset`, which decode to `plain` bytes; their BLAKE3 is the chunk's id.

    In a sealed pack the BLAKE3 is keyed, and `stored` counts the tag.
    """

    pack: str
    offset: int
    stored: int
    plain: int
    codec: Codec


class Pack(NamedTuple):
    """One object, named by the BLAKE3 of its bytes; `md5` is what a store computes of a single-part upload."""

    size: int
    md5: str
    salt: str = ""
    """32 hex digits from which its key is derived; empty = a pack of format 1, which is not encrypted."""


class Entry(NamedTuple):
    """One name in the tree, relative to the root; the root itself is `b""`. Names are bytes, as the kernel has them."""

    path: bytes
    kind: Kind
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    sum: str = ""
    """32 hex digits that tell contents apart: see `chunk.content_sum`."""
    extents: tuple[Extent, ...] = ()
    target: bytes = b""
    """A symlink's text; a hardlink's other name, which is a file of the same manifest."""
    torn: bool = False
    """The file changed whenever it was read: its parts may be of different moments."""
    uid: int = NOBODY
    gid: int = NOBODY
    xattrs: tuple[tuple[str, bytes], ...] = ()

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
