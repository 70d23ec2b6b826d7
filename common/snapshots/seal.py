"""Manifest <-> stored bytes, encrypted and authenticated under the instance's key.

Stored: `MAGIC | nonce (12 bytes) | AES-256-GCM of (plain size (8 bytes, little endian) | one LZ4 block of format 2)`.
Nothing is decoded before it is authentic; what was decoded is still judged as hostile, for a host holds the key too.
"""

from __future__ import annotations

import re
from dataclasses import replace

import lz4.block
from blake3 import blake3

from common.domain.version import Version
from common.errors import SnapshotRefused
from common.snapshots import format1, format2
from common.snapshots.keys import aes_gcm, keys_of
from common.snapshots.limits import MAX_MANIFEST_BYTES
from common.snapshots.manifest import Manifest

MAGIC = b"DUMONT-SNAPSHOT-2\n"
LZ4_MAX_RATIO = 256
"""No block unpacks to more: a claim beyond is refused before anything is allocated."""
NONCE_BYTES = 12
"""Keyed BLAKE3 of what is sealed: the same content gives the same bytes, and two contents the same nonce only if 96
bits of it collide, which for a million manifests has a chance of 1 : 10^17."""
KEY_SHAPE = re.compile(r"(?P<prefix>.*)manifests/(?P<epoch>\d{1,12})-(?P<seq>\d{1,12})-(?P<content>[0-9a-f]{12})\.dm")


def seal(manifest: Manifest, instance_key: bytes) -> tuple[Manifest, bytes]:
    """The manifest with its key, and the bytes to store there."""
    plain = format2.encode(manifest)
    sealed = seal_plain(len(plain).to_bytes(8, "little") + lz4.block.compress(plain, store_size=False), instance_key)
    version = manifest.version
    name = f"{version.epoch}-{version.seq}-{content_of(sealed)}.dm"
    return replace(manifest, key=f"{manifest.prefix}manifests/{name}"), sealed


def seal_plain(body: bytes, instance_key: bytes) -> bytes:
    keys = keys_of(instance_key)
    nonce = blake3(body, key=keys.nonce).digest(length=NONCE_BYTES)
    return MAGIC + nonce + aes_gcm(keys.manifest).encrypt(nonce, body, MAGIC)


def unseal(sealed: bytes, key: str, instance_key: bytes) -> Manifest:
    """The manifest stored under `key`; raises `SnapshotRefused` if it is not authentic, not that one, or hostile."""
    name = _name_of(sealed, key)
    if sealed.startswith(format1.MAGIC):
        read = format1.unseal(sealed, key, instance_key)
    else:
        read = format2.decode(_plain(sealed, key, instance_key))
    _require_named(name, read.prefix, read.version)
    return replace(read, key=key)


def check(sealed: bytes, key: str, instance_key: bytes) -> None:
    """Raises `SnapshotRefused` for what `unseal` would, at a quarter of the cost: for who is about to store it."""
    name = _name_of(sealed, key)
    _require_named(name, *format2.check(_plain(sealed, key, instance_key)))


def _name_of(sealed: bytes, key: str) -> re.Match[str]:
    name = KEY_SHAPE.fullmatch(key)
    if not name or name["content"] != content_of(sealed):
        raise SnapshotRefused(f"what {key} holds is not what its name says")
    return name


def _require_named(name: re.Match[str], prefix: str, version: Version) -> None:
    claimed = (prefix, str(version.epoch), str(version.seq), name["content"])
    if name.groups() != claimed:
        raise SnapshotRefused(f"{name.string} holds a manifest of another name: {claimed}")


def content_of(sealed: bytes) -> str:
    return blake3(sealed).hexdigest()[:12]


def _plain(sealed: bytes, key: str, instance_key: bytes) -> bytes:
    return _unpack(_open(sealed, key, instance_key), key)


def _open(sealed: bytes, key: str, instance_key: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    nonce, body = sealed[len(MAGIC) :][:NONCE_BYTES], sealed[len(MAGIC) + NONCE_BYTES :]
    try:
        if not sealed.startswith(MAGIC) or len(nonce) != NONCE_BYTES:
            raise InvalidTag
        return aes_gcm(keys_of(instance_key).manifest).decrypt(nonce, body, MAGIC)
    except InvalidTag:
        raise SnapshotRefused(f"{key} is not a manifest made with this instance's key") from None


def _unpack(body: bytes, key: str) -> bytes:
    size = int.from_bytes(body[:8], "little")
    most = min(MAX_MANIFEST_BYTES, LZ4_MAX_RATIO * len(body))
    if size > most:
        raise SnapshotRefused(f"{key} claims to unpack to {size} bytes; {most} at most are believed")
    try:
        return lz4.block.decompress(body[8:], uncompressed_size=size)  # type: ignore[no-any-return]
    except (lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
        raise SnapshotRefused(f"{key} does not decode: {error}") from None
