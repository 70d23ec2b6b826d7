"""Manifest <-> stored bytes, authenticated by the instance's key.

Stored: `MAGIC | HMAC-SHA256 | plain size (8 bytes, little endian) | one LZ4 block of compact JSON`. Nothing is decoded
before the HMAC agrees; what was decoded is still judged as hostile (module `hostile`), for a host holds the key too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import replace
from typing import Any

import lz4.block
from blake3 import blake3

from common.errors import SnapshotRefused
from common.snapshots.hostile import MAX_MANIFEST_BYTES, SCHEMA, read_manifest
from common.snapshots.manifest import Entry, Manifest

MAGIC = b"DUMONT-SNAPSHOT-1\n"
MAC_BYTES = 32
KEY_SHAPE = re.compile(r"(?P<prefix>.*)manifests/(?P<epoch>\d{1,12})-(?P<seq>\d{1,12})-(?P<content>[0-9a-f]{12})\.dm")


def seal(manifest: Manifest, instance_key: bytes) -> tuple[Manifest, bytes]:
    """The manifest with its key, and the bytes to store there."""
    plain = json.dumps(_document(manifest), separators=(",", ":")).encode("ascii")
    body = len(plain).to_bytes(8, "little") + lz4.block.compress(plain, store_size=False)
    sealed = MAGIC + _mac(body, instance_key) + body
    version = manifest.version
    name = f"{version.epoch}-{version.seq}-{_content(sealed)}.dm"
    return replace(manifest, key=f"{manifest.prefix}manifests/{name}"), sealed


def unseal(sealed: bytes, key: str, instance_key: bytes) -> Manifest:
    """The manifest stored under `key`; raises `SnapshotRefused` if it is not authentic, not that one, or hostile."""
    mac, body = sealed[len(MAGIC) :][:MAC_BYTES], sealed[len(MAGIC) + MAC_BYTES :]
    if not sealed.startswith(MAGIC) or not hmac.compare_digest(mac, _mac(body, instance_key)):
        raise SnapshotRefused(f"{key} is not a manifest made with this instance's key")
    manifest = replace(read_manifest(_decode(body, key)), key=key)
    name, version = KEY_SHAPE.fullmatch(key), manifest.version
    claimed = (manifest.prefix, str(version.epoch), str(version.seq), _content(sealed))
    if not name or name.groups() != claimed:
        raise SnapshotRefused(f"{key} holds a manifest of another name: {claimed}")
    return manifest


def _decode(body: bytes, key: str) -> Any:
    size = int.from_bytes(body[:8], "little")
    if size > MAX_MANIFEST_BYTES:
        raise SnapshotRefused(f"{key} claims to unpack to {size} bytes; the limit is {MAX_MANIFEST_BYTES}")
    try:
        return json.loads(lz4.block.decompress(body[8:], uncompressed_size=size))
    except (lz4.block.LZ4BlockError, ValueError, RecursionError) as error:
        raise SnapshotRefused(f"{key} does not decode: {error}") from None


def _mac(body: bytes, instance_key: bytes) -> bytes:
    return hmac.new(instance_key, MAGIC + body, hashlib.sha256).digest()


def _content(sealed: bytes) -> str:
    return blake3(sealed).hexdigest()[:12]


def _document(manifest: Manifest) -> dict[str, Any]:
    """Tables refer to each other by row number: names are long, and most of a manifest is references."""
    packs = {name: row for row, name in enumerate(manifest.packs)}
    chunks = {name: row for row, name in enumerate(manifest.chunks)}
    return {
        "schema": SCHEMA,
        "prefix": manifest.prefix,
        "epoch": manifest.version.epoch,
        "seq": manifest.version.seq,
        "taken_at": manifest.taken_at,
        "packs": [[name, pack.size, pack.md5] for name, pack in manifest.packs.items()],
        "chunks": [
            [name, packs[chunk.pack], chunk.offset, chunk.stored, chunk.plain, chunk.codec]
            for name, chunk in manifest.chunks.items()
        ],
        "entries": [_row(entry, chunks) for entry in manifest.entries],
    }


def _row(entry: Entry, chunks: dict[str, int]) -> list[Any]:
    row: list[Any] = [_text(entry.path), entry.kind]
    if entry.kind == "hardlink":
        return [*row, _text(entry.target)]
    row += [entry.mode, entry.mtime_ns]
    if entry.kind == "symlink":
        return [*row, _text(entry.target)]
    if entry.kind == "dir":
        return row
    extents = [[extent.at, chunks[extent.chunk], extent.start, extent.length] for extent in entry.extents]
    return [*row, entry.size, entry.sum, extents, int(entry.torn)]


def _text(name: bytes) -> str:
    """Every name survives: bytes that are not UTF-8 become lone surrogates, which JSON writes as escapes."""
    return name.decode("utf-8", "surrogateescape")
