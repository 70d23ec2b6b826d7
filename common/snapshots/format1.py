"""Format 1 of a manifest, which is read and no longer written: HMAC-SHA256 over one LZ4 block of compact JSON.

`MAGIC | HMAC | plain size (8 bytes, little endian) | LZ4 block`. Its packs are not encrypted, its chunks are `raw` or
`lz4`, their names plain BLAKE3. Everything it says is checked before anything is done with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import lz4.block

from common.domain.version import Version
from common.errors import SnapshotRefused
from common.snapshots.limits import (
    MAX_CHUNK_BYTES,
    MAX_COUNT,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_NAME_BYTES,
    MAX_PACK_BYTES,
    MAX_PATH_BYTES,
    MAX_TARGET_BYTES,
    MTIME_NS,
    PREFIX_SHAPE,
    require,
)
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack

MAGIC = b"DUMONT-SNAPSHOT-1\n"
SCHEMA = 1
MAC_BYTES = 32


def unseal(sealed: bytes, key: str, instance_key: bytes) -> Manifest:
    """The manifest stored under `key`; raises `SnapshotRefused`."""
    mac, body = sealed[len(MAGIC) :][:MAC_BYTES], sealed[len(MAGIC) + MAC_BYTES :]
    if not hmac.compare_digest(mac, mac_of(body, instance_key)):
        raise SnapshotRefused(f"{key} is not a manifest made with this instance's key")
    return read_manifest(_decode(body, key))


def mac_of(body: bytes, instance_key: bytes) -> bytes:
    return hmac.new(instance_key, MAGIC + body, hashlib.sha256).digest()


def _decode(body: bytes, key: str) -> Any:
    size = int.from_bytes(body[:8], "little")
    require(size <= MAX_MANIFEST_BYTES, f"{key} claims to unpack to {size} bytes; the limit is {MAX_MANIFEST_BYTES}")
    try:
        return json.loads(lz4.block.decompress(body[8:], uncompressed_size=size))
    except (lz4.block.LZ4BlockError, ValueError, RecursionError, MemoryError) as error:
        raise SnapshotRefused(f"{key} does not decode: {error}") from None


def read_manifest(document: Any) -> Manifest:
    """The manifest; raises `SnapshotRefused` with the first thing that is not as an honest engine writes it."""
    require(isinstance(document, dict) and document.get("schema") == SCHEMA, "its schema is unknown")
    try:
        packs = _packs(document["packs"])
        chunks = _chunks(document["chunks"], list(packs), packs)
        entries = _entries(document["entries"], list(chunks), chunks)
        version = Version(epoch=_int(document["epoch"], MAX_COUNT), seq=_int(document["seq"], MAX_COUNT))
        prefix, taken_at = _str(document["prefix"], 1024), _str(document["taken_at"], 64)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SnapshotRefused(f"the manifest has not the shape of one: {error!r}") from None
    require(PREFIX_SHAPE.fullmatch(prefix) is not None, f"prefix {prefix!r}")
    return Manifest(prefix, version, taken_at, entries, chunks, packs)


def _packs(rows: list[Any]) -> dict[str, Pack]:
    packs: dict[str, Pack] = {}
    for name, size, md5 in rows:
        require(_hex(name, 64) not in packs, f"pack {name} stands twice")
        packs[name] = Pack(_int(size, MAX_PACK_BYTES, least=1), _hex(md5, 32))
    return packs


def _chunks(rows: list[Any], names: list[str], packs: dict[str, Pack]) -> dict[str, Chunk]:
    chunks: dict[str, Chunk] = {}
    for name, row, offset, stored, plain, codec in rows:
        require(_hex(name, 64) not in chunks, f"chunk {name} stands twice")
        pack = names[_int(row, len(names) - 1)]
        _int(plain, MAX_CHUNK_BYTES, least=1)
        _int(stored, plain, least=1)
        require(codec == "lz4" or (codec == "raw" and stored == plain), f"chunk {name} has codec {codec!r}")
        require(_int(offset, MAX_PACK_BYTES) + stored <= packs[pack].size, f"chunk {name} lies outside its pack")
        chunks[name] = Chunk(pack, offset, stored, plain, codec)
    unused = packs.keys() - {chunk.pack for chunk in chunks.values()}
    require(not unused, f"packs without a chunk: {sorted(unused)[:3]}")
    return chunks


def _entries(rows: list[Any], names: list[str], chunks: dict[str, Chunk]) -> tuple[Entry, ...]:
    """Each directory before its content: so no parent can be a symlink, a file, or outside the root."""
    found: dict[bytes, Entry] = {}
    for row in rows:
        entry = _entry(row, names, chunks)
        parent = found.get(entry.parent)
        inside = (not entry.path and not found) or (parent is not None and parent.kind == "dir" and entry.path != b"")
        require(inside, f"{entry.path!r} is not inside a directory of the manifest")
        require(entry.path not in found, f"{entry.path!r} stands twice")
        found[entry.path] = entry
    require(b"" in found and found[b""].kind == "dir", "it has no root")
    for entry in found.values():
        if entry.kind == "hardlink":
            target = found.get(entry.target)
            require(target is not None and target.kind == "file", f"{entry.path!r} links to no file of the manifest")
    return tuple(found.values())


def _entry(row: list[Any], names: list[str], chunks: dict[str, Chunk]) -> Entry:
    path, kind = _path(row[0]), row[1]
    if kind == "hardlink":
        (target,) = row[2:]
        return Entry(path, "hardlink", target=_path(target))
    mode, mtime_ns = _int(row[2], 0o7777), _int(row[3], MTIME_NS, least=-MTIME_NS)
    if kind == "dir":
        () = row[4:]
        return Entry(path, "dir", mode, mtime_ns)
    if kind == "symlink":
        (text,) = row[4:]
        target = _bytes(text, MAX_TARGET_BYTES)
        require(target != b"", f"{path!r} is a symlink to nothing")
        return Entry(path, "symlink", mode, mtime_ns, target=target)
    require(kind == "file", f"{path!r} is of unknown kind {kind!r}")
    size, content, extents, torn = row[4:]
    read = _extents(extents, _int(size, MAX_FILE_BYTES), names, chunks)
    return Entry(path, "file", mode, mtime_ns, size, _hex(content, 32), read, torn=bool(_int(torn, 1)))


def _extents(rows: list[Any], size: int, names: list[str], chunks: dict[str, Chunk]) -> tuple[Extent, ...]:
    extents = []
    end = 0
    for at, number, start, length in rows:
        name = names[_int(number, len(names) - 1)]
        require(_int(at, size, least=end) + _int(length, MAX_CHUNK_BYTES, least=1) <= size, "an extent past its file")
        require(_int(start, MAX_CHUNK_BYTES) + length <= chunks[name].plain, "an extent past its chunk")
        extents.append(Extent(at, name, start, length))
        end = at + length
    return tuple(extents)


def _path(text: Any) -> bytes:
    path = _bytes(text, MAX_PATH_BYTES)
    for name in path.split(b"/") if path else ():
        require(name not in (b"", b".", b"..") and len(name) <= MAX_NAME_BYTES, f"path {path[:80]!r}")
    return path


def _bytes(text: Any, most: int) -> bytes:
    name = _str(text, most).encode("utf-8", "surrogateescape")
    require(len(name) <= most and b"\0" not in name, f"name {name[:80]!r}")
    return name


def _str(value: Any, most: int) -> str:
    require(isinstance(value, str) and len(value) <= most, f"{value!r:.80} is not a text of at most {most}")
    return str(value)


def _hex(value: Any, digits: int) -> str:
    legal = isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")
    require(legal, f"{value!r:.80} is not {digits} hex digits")
    return str(value)


def _int(value: Any, most: int, *, least: int = 0) -> int:
    legal = type(value) is int and least <= value <= most
    require(legal, f"{value!r:.80} is not a whole number from {least} to {most}")
    return int(value)
