"""Chunks in packs: how they are encoded, sealed, collected in objects worth sending, and proven when they come back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from blake3 import blake3

from common.errors import SnapshotDamaged
from common.snapshots.codec import Plain, decode, encode
from common.snapshots.keys import Keys, nonce_at, pack_cipher
from common.snapshots.limits import MAX_CHUNK_BYTES
from common.snapshots.manifest import TAG_BYTES, Chunk, Codec, Pack

PACK_BYTES = 8 << 20
"""A pack is closed when it has grown so far: one part for s5cmd (50 MiB), so that the store's ETag is its MD5. Small
enough that the line has something to do soon, that little is left to send when all is read, and that of a pack of
thousands of small files the first ones are there soon when it comes back."""
FIRST_PACK_BYTES = 1 << 20
"""A small first snapshot is spread over packs of this size at least: all are on their way at once, and come back so,
and none waits for a "100 Continue" (s5cmd asks for one from 2 MiB on). Nobody waits for the snapshots after it, which
send little: there each object costs more than it saves."""
SALT_BYTES = 16

Row = tuple[str, int, int, int, Codec]
"""(chunk, offset, stored bytes, plain bytes, codec)"""

assert PACK_BYTES + MAX_CHUNK_BYTES < 40 << 20


def chunk_id(plain: Plain, keys: Keys) -> str:
    return blake3(plain, key=keys.chunk_id).hexdigest()


class PackWriter:
    """Writes chunks into one pack after the other; in one process, which alone knows the salt of the pack it writes."""

    def __init__(
        self,
        keys: Keys,
        claim: Callable[[], int],
        on_full: Callable[[int, str, Pack, list[Row]], None],
        full_at: int = PACK_BYTES,
    ) -> None:
        """`claim` gives the descriptor to write the next pack to; `on_full` takes it over with what is in it, when it
        has `full_at` bytes or more. Its MD5 is not known yet."""
        self._full_at = full_at
        self._keys = keys
        self._claim = claim
        self._on_full = on_full
        self._sealed = bytearray(MAX_CHUNK_BYTES + TAG_BYTES)
        self._slot: int | None = None
        self.size = 0
        self.holds_small = False
        """Is the pack that is being written one of small files?"""

    def add(self, name: str, plain: Plain, *, tightly: bool) -> None:
        """Appends the chunk of that name (1 to MAX_CHUNK_BYTES bytes)."""
        if self._slot is None:
            self._open()
        codec, encoded = encode(plain, tightly=tightly)
        sealed = memoryview(self._sealed)[: len(encoded) + TAG_BYTES]
        self._cipher.encrypt_into(nonce_at(self.size), encoded, bytes.fromhex(name), sealed)
        self._append(sealed)
        self._rows.append((name, self.size, len(sealed), len(plain), codec))
        self.size += len(sealed)
        if self.size >= self._full_at:
            self.close()

    def close(self) -> None:
        """Hands over the last pack, full or not."""
        if self._slot is None:
            return
        slot, self._slot = self._slot, None
        os.ftruncate(slot, self.size)
        pack = Pack(self.size, "", self._salt)
        self.size = 0
        self._on_full(slot, self._content.hexdigest(), pack, self._rows)

    def _open(self) -> None:
        self._slot = self._claim()
        self._salt = os.urandom(SALT_BYTES).hex()
        self._cipher = pack_cipher(self._keys, self._salt)
        self._content = blake3()
        self._rows: list[Row] = []

    def _append(self, piece: memoryview) -> None:
        self._content.update(piece)
        at = self.size
        assert self._slot is not None
        while piece:
            written = os.pwrite(self._slot, piece, at)
            piece, at = piece[written:], at + written


class PackReader:
    """Decodes chunks from the packs in `folder`, and believes none that does not hash to its name."""

    def __init__(self, folder: Path, chunks: Mapping[str, Chunk], packs: Mapping[str, Pack], keys: Keys) -> None:
        self._folder = folder
        self._chunks = chunks
        self._packs = packs
        self._keys = keys
        self._open: tuple[str, int] = ("", -1)

    def chunk(self, name: str) -> Plain:
        """The plain bytes; raises `SnapshotDamaged` naming the chunk."""
        chunk = self._chunks[name]
        stored = os.pread(self._pack(chunk.pack, name), chunk.stored, chunk.offset)
        try:
            plain = open_chunk(name, chunk, self._packs[chunk.pack], stored, self._keys)
        except ValueError as error:
            why = f"chunk {name} of pack {chunk.pack} is not what the manifest promises: {error}"
            raise SnapshotDamaged(why, name) from None
        return plain

    def close(self) -> None:
        if self._open[1] >= 0:
            os.close(self._open[1])
        self._open = ("", -1)

    def _pack(self, pack: str, chunk: str) -> int:
        if self._open[0] != pack:
            self.close()
            try:
                self._open = (pack, os.open(self._folder / pack, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                raise SnapshotDamaged(f"pack {pack} is missing", chunk) from None
        return self._open[1]


def open_chunk(name: str, chunk: Chunk, pack: Pack, stored: bytes, keys: Keys) -> Plain:
    """The plain bytes of a chunk as the pack holds it; raises ValueError."""
    if len(stored) != chunk.stored:
        raise ValueError("the pack ends too early")
    if not pack.salt:  # format 1
        plain = decode(chunk.codec, stored, chunk.plain)
        if blake3(plain).hexdigest() != name:
            raise ValueError("another content")
        return plain
    plain = decode(chunk.codec, _decrypted(name, chunk, pack, stored, keys), chunk.plain)
    if chunk_id(plain, keys) != name:
        raise ValueError("another content")
    return plain


def _decrypted(name: str, chunk: Chunk, pack: Pack, sealed: bytes, keys: Keys) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return pack_cipher(keys, pack.salt).decrypt(nonce_at(chunk.offset), sealed, bytes.fromhex(name))
    except InvalidTag:
        raise ValueError("it does not authenticate") from None
