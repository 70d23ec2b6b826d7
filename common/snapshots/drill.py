"""Reads a snapshot back on a machine of ours, as far as a number of bytes goes, and compares it with its promise.

Runs in the control plane: nothing is written to a disk, and no more than one pack is held. Every chunk of the packs
that are read is decrypted, decoded and hashed under the instance's key; the content of each small file in them is
compared with the sum that the host took when it read the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from common.errors import ObjectMissing, SnapshotDamaged
from common.snapshots.chunk import SMALL_FILE_BYTES, bytes_sum
from common.snapshots.codec import Plain
from common.snapshots.keys import Keys, keys_of
from common.snapshots.manifest import Entry, Manifest, pack_key
from common.snapshots.pack import open_chunk
from common.snapshots.verify import Readable

Shuffle = Callable[[list[str]], list[str]]
"""The same names in an order that nobody foresees."""


@dataclass(frozen=True)
class Drilled:
    """What was found whole; there is no damaged one, `drill` raises instead."""

    files: int
    """Whose every byte was read back."""
    of_files: int
    bytes: int
    """Decoded."""
    of_bytes: int
    packs: int
    of_packs: int
    bytes_read: int

    @property
    def is_whole(self) -> bool:
        return self.packs == self.of_packs


def drill(
    objects: Readable, manifest: Manifest, *, instance_key: bytes, most_bytes: int, shuffle: Shuffle
) -> Drilled:  # fmt: skip
    """At least one pack, and further ones while `most_bytes` of the store are not exceeded.

    Raises `SnapshotDamaged` with the chunk, or `ObjectStoreError` (no answer: nothing is known).
    """
    chosen: list[str] = []
    size = 0
    for name in shuffle(sorted(manifest.packs)):
        if not chosen or size + manifest.packs[name].size <= most_bytes:
            chosen.append(name)
            size += manifest.packs[name].size
    keys, small = keys_of(instance_key), _small_files(manifest)
    decoded = sum(_pack(objects, manifest, name, keys, small) for name in chosen)
    held = {name for name, chunk in manifest.chunks.items() if chunk.pack in set(chosen)}
    files = [entry for entry in manifest.entries if entry.kind == "file"]
    return Drilled(
        files=sum(all(extent.chunk in held for extent in file.extents) for file in files),
        of_files=len(files),
        bytes=decoded,
        of_bytes=sum(chunk.plain for chunk in manifest.chunks.values()),
        packs=len(chosen),
        of_packs=len(manifest.packs),
        bytes_read=size,
    )


def _small_files(manifest: Manifest) -> dict[str, list[Entry]]:
    """By the one chunk in which all of its bytes lie; a file of several is proven by its chunks' names."""
    found: dict[str, list[Entry]] = {}
    for entry in manifest.entries:
        if len(entry.extents) == 1 and entry.size <= SMALL_FILE_BYTES and entry.extents[0].length == entry.size:
            found.setdefault(entry.extents[0].chunk, []).append(entry)
    return found


def _pack(objects: Readable, manifest: Manifest, name: str, keys: Keys, small: dict[str, list[Entry]]) -> int:
    """Bytes decoded of one pack, which is read whole."""
    pack = manifest.packs[name]
    try:
        content = b"".join(objects.read(pack_key(manifest.prefix, name)))
    except ObjectMissing:
        raise SnapshotDamaged(f"pack {name} is not in the store", manifest.first_chunk_of(name)) from None
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if (len(content), blake3(content).hexdigest(), md5) != (pack.size, name, pack.md5):
        raise SnapshotDamaged(f"pack {name} reads back with another content", manifest.first_chunk_of(name))
    decoded = 0
    for id, chunk in manifest.chunks.items():
        if chunk.pack != name:
            continue
        try:
            plain = open_chunk(id, chunk, pack, content[chunk.offset : chunk.offset + chunk.stored], keys)
        except ValueError as error:
            why = f"chunk {id} of pack {name} is not what the manifest promises: {error}"
            raise SnapshotDamaged(why, id) from None
        _compare(plain, id, small.get(id, []))
        decoded += len(plain)
    return decoded


def _compare(plain: Plain, id: str, files: list[Entry]) -> None:
    for file in files:
        (extent,) = file.extents
        if bytes_sum(plain[extent.start : extent.start + extent.length]) != file.sum:
            raise SnapshotDamaged(f"a file in chunk {id} has another content than when it was read", id)
