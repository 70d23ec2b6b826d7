"""The keys of an instance's snapshots, all derived from its one data key, which the control plane keeps wrapped.

Nothing of them is stored: who has the data key has these, and who has one of these has not that one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


@dataclass(frozen=True)
class Keys:
    manifest: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    """Keys the choice of a manifest's nonce."""
    chunk_id: bytes = field(repr=False)
    """Keys the chunks' names: nobody can tell from a name whether we hold a content that he knows."""
    pack: bytes = field(repr=False)


@lru_cache(maxsize=64)
def keys_of(instance_key: bytes) -> Keys:
    def derived(purpose: str) -> bytes:
        return blake3(instance_key, derive_key_context=f"dumont-cloud 2026 snapshot {purpose}").digest()

    return Keys(derived("manifest"), derived("nonce"), derived("chunk id"), derived("pack"))


def pack_cipher(keys: Keys, salt: str) -> AESGCM:
    """AES-256-GCM under the key of one pack.

    No nonce is ever used twice under one key: a salt is 128 random bits, drawn for one pack by the one process that
    writes it, once; inside the pack the nonce is the chunk's offset (`nonce_at`), and no two chunks begin at one place.
    """
    return aes_gcm(blake3(bytes.fromhex(salt), key=keys.pack).digest())


def nonce_at(offset: int) -> bytes:
    return offset.to_bytes(12, "little")


def aes_gcm(key: bytes) -> AESGCM:
    """Loaded when it is first needed: the agent's start does not wait for it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
