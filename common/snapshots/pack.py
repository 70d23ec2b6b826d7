"""Chunks in packs: how bytes are encoded, collected in objects worth sending, and proven when they come back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import lz4.block
from blake3 import blake3

from common.errors import SnapshotDamaged
from common.snapshots.hostile import MAX_CHUNK_BYTES
from common.snapshots.manifest import Chunk, Codec, Pack

PACK_BYTES = 32 << 20
"""A pack is closed when it has grown so far: one part for s5cmd (50 MiB), so that the store's ETag is its MD5."""
PAYS_BELOW = 0.97
"""A chunk that LZ4 does not shrink at least so far is stored as it is."""
CACHED_CHUNKS = 12
"""Decoded chunks kept while files are written: at most 48 MiB."""
HASHED_AT_ONCE = 8 << 20

assert PACK_BYTES + MAX_CHUNK_BYTES < 40 << 20


class PackWriter:
    """Puts each chunk once into packs in `stage`; `known` chunks are in the store already and are not put again."""

    def __init__(self, stage: Path, known: dict[str, Chunk], on_full: Callable[[str, Pack], None]) -> None:
        self.chunks: dict[str, Chunk] = {}
        """Those of this snapshot, known and new."""
        self.new_bytes = 0
        self._stage = stage
        self._known = known
        self._on_full = on_full
        self._file: BinaryIO | None = None
        self._waiting: dict[str, tuple[int, int, int, Codec]] = {}

    def add(self, plain: bytes | memoryview) -> str:
        """The id of the chunk with this content (1 to MAX_CHUNK_BYTES bytes)."""
        name = blake3(plain).hexdigest()
        if name in self.chunks or name in self._waiting:
            return name
        if known := self._known.get(name):
            self.chunks[name] = known
            return name
        self.new_bytes += len(plain)
        packed = lz4.block.compress(plain, store_size=False)
        pays = len(packed) < PAYS_BELOW * len(plain)
        self._append(name, packed if pays else plain, len(plain), "lz4" if pays else "raw")
        return name

    def keep(self, name: str) -> None:
        """An untouched file's chunk, known from the snapshot before."""
        if name not in self.chunks:
            self.chunks[name] = self._known[name]

    def close(self) -> None:
        """Hands over the last pack, full or not."""
        if self._file is None:
            return
        self._file.close()
        name, md5 = self._content.hexdigest(), self._md5.hexdigest()
        (self._stage / "open").rename(self._stage / name)
        for id, (offset, stored, plain, codec) in self._waiting.items():
            self.chunks[id] = Chunk(name, offset, stored, plain, codec)
        self._file, self._waiting = None, {}
        self._on_full(name, Pack(self._size, md5))

    def abandon(self) -> None:
        """After a failure: the open pack is left to the next sweep of the stage."""
        if self._file is not None:
            self._file.close()

    def _append(self, name: str, stored: bytes | memoryview, plain_bytes: int, codec: Codec) -> None:
        if self._file is None:
            self._file = (self._stage / "open").open("wb")
            self._size, self._content, self._md5 = 0, blake3(), hashlib.md5(usedforsecurity=False)
        self._file.write(stored)
        self._content.update(stored)
        self._md5.update(stored)
        self._waiting[name] = (self._size, len(stored), plain_bytes, codec)
        self._size += len(stored)
        if self._size >= PACK_BYTES:
            self.close()


class PackReader:
    """Decodes chunks from the packs in `stage`, and believes none that does not hash to its name."""

    def __init__(self, stage: Path, chunks: dict[str, Chunk]) -> None:
        self._stage = stage
        self._chunks = chunks
        self._cache: dict[str, bytes] = {}
        self._open: tuple[str, int] = ("", -1)

    def chunk(self, name: str) -> bytes:
        """The plain bytes; raises `SnapshotDamaged` naming the chunk."""
        if name in self._cache:
            return self._cache[name]
        plain = self.decode(name)
        if len(self._cache) == CACHED_CHUNKS:
            del self._cache[next(iter(self._cache))]
        self._cache[name] = plain
        return plain

    def decode(self, name: str) -> bytes:
        chunk = self._chunks[name]
        stored = os.pread(self._pack(chunk.pack, name), chunk.stored, chunk.offset)
        try:
            plain = stored if chunk.codec == "raw" else lz4.block.decompress(stored, uncompressed_size=chunk.plain)
        except lz4.block.LZ4BlockError:
            plain = b""
        if len(plain) != chunk.plain or blake3(plain).hexdigest() != name:
            raise SnapshotDamaged(f"chunk {name} of pack {chunk.pack} is not what the manifest promises", name)
        return plain

    def close(self) -> None:
        if self._open[1] >= 0:
            os.close(self._open[1])
        self._open = ("", -1)

    def _pack(self, pack: str, chunk: str) -> int:
        if self._open[0] != pack:
            self.close()
            try:
                self._open = (pack, os.open(self._stage / pack, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                raise SnapshotDamaged(f"pack {pack} is missing", chunk) from None
        return self._open[1]


def is_whole(path: Path, name: str, pack: Pack) -> bool:
    """Is the pack at `path`, every byte of it?"""
    try:
        if path.stat().st_size != pack.size:
            return False
    except FileNotFoundError:
        return False
    content = blake3()
    with path.open("rb") as file:
        while piece := file.read(HASHED_AT_ONCE):
            content.update(piece)
    return content.hexdigest() == name
