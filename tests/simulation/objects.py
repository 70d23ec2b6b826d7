"""The bucket, and the engine's two verbs over it: real manifests and packs, as small as they can be.

A workspace is a line of writes; its content is the last of them, which knows the one before. A snapshot holds that
write's number in one pack, and the pack of the snapshot before as a file of its own, so that packs are shared.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from common.domain.version import Version
from common.errors import ObjectMissing, ObjectStoreError, SnapshotDamaged
from common.ports import Stored
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack, pack_key
from common.snapshots.seal import seal, unseal

ROOT = Entry(b"", "dir", 0o755)


@dataclass(frozen=True, eq=False)
class Content:
    """What a workspace holds: everything up to and including this write."""

    number: int
    depth: int
    before: Content | None
    aside: frozenset[str] = frozenset()
    """Manifest keys of what was brought to it, beside its own files."""

    def holds(self, other: Content) -> bool:
        at: Content | None = self
        while at is not None and at.depth > other.depth:
            at = at.before
        return at is other


@dataclass
class Workspaces:
    """Every content there ever was, by its number."""

    known: dict[int, Content] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def write(self, before: Content | None, *, brought: frozenset[str] = frozenset()) -> Content:
        aside = (before.aside if before else frozenset()) | brought
        content = Content(next(self._numbers), before.depth + 1 if before else 0, before, aside)
        self.known[content.number] = content
        return content


@dataclass
class Held:
    data: bytes
    at: float
    md5: str
    """As the store computed it when the object arrived."""
    is_rotten: bool = False
    """Its content changed after it was stored."""


@dataclass
class Bucket:
    """`ports.ObjectStore`, with the one fault that lies in what it holds."""

    clock: Callable[[], float]
    objects: dict[str, Held] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    """Key -> when it vanished."""
    deleting: Callable[[Sequence[str]], None] = lambda _keys: None
    """Told of what is about to be deleted."""

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(f"the store has no {key}")
        return self.objects[key].data

    def read(self, key: str) -> Iterator[bytes]:
        yield self.get(key)

    def list(self, prefix: str, hides_newest_s: float = 0.0) -> Iterator[Stored]:
        newest = self.clock() - hides_newest_s
        for key in sorted(self.objects):
            stored = self.objects[key]
            if key.startswith(prefix) and stored.at <= newest:
                yield Stored(key, len(stored.data), stored.md5)

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = Held(data, self.clock(), _md5(data))
        self.gone.pop(key, None)

    def put_file(self, key: str, path: str) -> None:
        self.put(key, Path(path).read_bytes())

    def delete(self, keys: Sequence[str]) -> None:
        self.deleting(keys)
        for key in keys:
            self.objects.pop(key, None)

    def presign_get(self, key: str, expires_s: int) -> str:
        return f"https://bucket.sim/{key}?expires={expires_s}"

    def presign_put(self, key: str, size_bytes: int, expires_s: int) -> str:
        return f"https://bucket.sim/{key}?size={size_bytes}&expires={expires_s}"

    def garble(self, key: str, *, is_rot: bool = False) -> None:
        """Another content of the same size: on its way to the store, or (rot) after it arrived."""
        stored = self.objects[key]
        data = stored.data[:-1] + bytes([(stored.data[-1] + 1) % 256])
        self.objects[key] = Held(data, stored.at, stored.md5 if is_rot else _md5(data), is_rot)

    def lose(self, key: str) -> None:
        self.gone[key] = self.clock()
        self.objects.pop(key, None)


@dataclass(frozen=True)
class Shot:
    """A snapshot on its way: what has to be uploaded, in order, the manifest last."""

    manifest: Manifest
    sealed: bytes
    packs: tuple[tuple[str, bytes], ...]
    """(key, bytes) that are not in the bucket yet."""
    content: Content


def take(
    content: Content,
    *,
    prefix: str,
    instance_key: bytes,
    version: Version,
    taken_at: str,
    previous: Manifest | None,
    salt: str,
) -> Shot:
    """`salt` = of the pack, as the engine draws one: no pack is ever written twice."""
    body = b"write %d in %s\n" % (content.number, salt.encode())
    chunk = blake3(b"write %d" % content.number).hexdigest()
    known = previous.chunks.get(chunk) if previous else None
    packs: dict[str, Pack] = {}
    if previous:
        (before,) = (entry for entry in previous.entries if entry.path == b"now")
        old = previous.chunks[before.extents[0].chunk]
        packs |= {name: previous.packs[name] for name in (old.pack, *([known.pack] if known else ()))}
    now = known or Chunk(blake3(body).hexdigest(), 0, len(body), len(body), "raw")
    packs.setdefault(now.pack, Pack(len(body), _md5(body)))
    chunks, files = {chunk: now}, [_file(b"now", chunk, now.plain)]
    if previous:
        chunks[before.extents[0].chunk] = old
        files.append(_file(b"before", before.extents[0].chunk, before.size))
    manifest = Manifest(
        prefix=prefix,
        version=version,
        taken_at=taken_at,
        entries=(ROOT, *files),
        chunks=chunks,
        packs=packs,
    )
    manifest, sealed = seal(manifest, instance_key)
    new = () if known else ((pack_key(prefix, now.pack), body),)
    return Shot(manifest, sealed, new, content)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _file(path: bytes, chunk: str, size: int) -> Entry:
    return Entry(path, "file", 0o644, 0, size, chunk[:32], (Extent(0, chunk, 0, size),))


def fetch_manifest(bucket: Bucket, key: str, instance_key: bytes) -> Manifest:
    return unseal(bucket.get(key), key, instance_key)


def restore(bucket: Bucket, key: str, instance_key: bytes, known: Mapping[int, Content]) -> Content:
    """Every pack is checked; raises what the real engine raises."""
    manifest = fetch_manifest(bucket, key, instance_key)
    bodies: dict[str, bytes] = {}
    for name, pack in manifest.packs.items():
        try:
            body = bucket.get(pack_key(manifest.prefix, name))
        except ObjectMissing:
            raise SnapshotDamaged(f"pack {name} is missing", manifest.first_chunk_of(name)) from None
        if len(body) != pack.size or blake3(body).hexdigest() != name:
            raise SnapshotDamaged(f"pack {name} is damaged", manifest.first_chunk_of(name))
        bodies[name] = body
    (now,) = (entry for entry in manifest.entries if entry.path == b"now")
    return known[int(bodies[manifest.chunks[now.extents[0].chunk].pack].split()[1])]


__all__ = ["Bucket", "Content", "ObjectStoreError", "Shot", "Workspaces", "fetch_manifest", "restore", "take"]
