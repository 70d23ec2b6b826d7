"""Is a snapshot really in the store? Runs in the control plane; asks the store alone, never the host that uploaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from blake3 import blake3

from common.domain.version import Version
from common.errors import SnapshotDamaged, SnapshotRefused
from common.snapshots.manifest import Manifest, Pack, pack_key
from common.snapshots.repack import waste_of
from common.snapshots.seal import unseal

if TYPE_CHECKING:
    from common.ports import Stored

Proof = Literal["md5", "read_back", "known"]


class Readable(Protocol):
    """What a verification needs of an object store (`ports.ObjectStore` has it)."""

    def get(self, key: str) -> bytes: ...

    def read(self, key: str) -> Iterator[bytes]: ...

    def list(self, prefix: str) -> Iterator[Stored]: ...


@dataclass(frozen=True)
class Verified:
    """That every object is there and was proven; there is no failed one, `verify` raises instead."""

    proof: Proof
    """How the packs were proven: by the store's MD5, some by reading them back, or all before this."""
    packs_new: tuple[str, ...]
    """Names that this call proved: add them to `proven` of the next."""
    packs_read_back: tuple[str, ...]
    """Those of them that cost a reading; the others' proof, a listing, costs nothing and is made anew each time."""
    bytes_read_back: int
    version: Version
    files: int
    bytes: int
    stored_bytes: int
    """Of all packs that the snapshot needs."""
    packs: tuple[str, ...]
    """Names of all packs that the snapshot needs."""
    torn: tuple[str, ...]
    """Files whose parts may be of different moments."""
    wasted_bytes: int
    """Of them, what a repacking would free."""
    wants_repacking: bool
    ok: Literal[True] = True


def load_manifest(objects: Readable, key: str, instance_key: bytes) -> Manifest:
    """The manifest at `key`; raises `ObjectMissing`, `ObjectStoreError`, or `SnapshotRefused`."""
    return unseal(objects.get(key), key, instance_key)


def verify(
    objects: Readable,
    manifest_key: str,
    *,
    prefix: str,
    instance_key: bytes,
    proven: Callable[[], Collection[str]],
    every_byte: bool = False,
) -> Verified:
    """Proves the snapshot by the store's own answers, with one listing.

    `proven` names the packs whose content was proven before, and is asked only where the store gives no checksum; with
    `every_byte` the others are read back even where it does. Raises `SnapshotDamaged` (an object is missing, or not
    what it should be), `SnapshotRefused` (the manifest is not authentic, or another's), `ObjectStoreError` (no answer:
    that is no proof of anything).
    """
    manifest = load_manifest(objects, manifest_key, instance_key)
    if manifest.prefix != prefix:
        raise SnapshotRefused(f"{manifest_key} is a snapshot of {manifest.prefix}, not of {prefix}")
    listed = {stored.key: stored for stored in objects.list(pack_key(prefix, ""))}
    for name, pack in manifest.packs.items():
        _check(manifest, name, pack, listed.get(pack_key(prefix, name)))
    bare = [name for name in manifest.packs if every_byte or listed[pack_key(prefix, name)].md5 is None]
    known = set(bare) & set(proven()) if bare else set()
    to_read = tuple(name for name in bare if name not in known)
    new = tuple(name for name in manifest.packs if name not in known)
    for name in to_read:
        _read_back(objects, manifest, name, pack_key(prefix, name))
    waste = waste_of(manifest)
    return Verified(
        proof="read_back" if to_read else "md5" if new else "known",
        packs_new=new,
        packs_read_back=to_read,
        bytes_read_back=sum(manifest.packs[name].size for name in to_read),
        version=manifest.version,
        files=manifest.files,
        bytes=manifest.bytes,
        stored_bytes=sum(pack.size for pack in manifest.packs.values()),
        packs=tuple(manifest.packs),
        torn=tuple(manifest.torn),
        wasted_bytes=waste.bytes,
        wants_repacking=waste.is_worth_it,
    )


def _check(manifest: Manifest, name: str, pack: Pack, stored: Stored | None) -> None:
    """What the listing tells costs nothing: also of packs that were proven once, for they may have been sent anew."""
    if stored is None:
        raise SnapshotDamaged(f"pack {name} is not in the store", manifest.first_chunk_of(name))
    if stored.size != pack.size:
        sizes = f"{stored.size} bytes, not {pack.size}"
        raise SnapshotDamaged(f"pack {name} has {sizes}", manifest.first_chunk_of(name))
    if stored.md5 not in (None, pack.md5):
        raise SnapshotDamaged(f"pack {name} has another content in the store", manifest.first_chunk_of(name))


def _read_back(objects: Readable, manifest: Manifest, name: str, key: str) -> None:
    pack, content, md5 = manifest.packs[name], blake3(), hashlib.md5(usedforsecurity=False)
    for piece in objects.read(key):
        content.update(piece)
        md5.update(piece)
    if (content.hexdigest(), md5.hexdigest()) != (name, pack.md5):
        raise SnapshotDamaged(f"pack {name} reads back with another content", manifest.first_chunk_of(name))
