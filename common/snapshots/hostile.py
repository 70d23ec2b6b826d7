"""Reads a decoded manifest as an enemy's work: everything it says is checked before anything is done with it.

A GPU host is a stranger's machine and holds its instance's key, so an authentic manifest may still be hostile.
"""

from __future__ import annotations

import re
from typing import Any

from common.domain.snapshot import Version
from common.errors import SnapshotRefused
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack

SCHEMA = 1
MAX_MANIFEST_BYTES = 1 << 30
"""Of decoded JSON: about five million files."""
MAX_CHUNK_BYTES = 4 << 20
MAX_PACK_BYTES = 40 << 20
MAX_FILE_BYTES = 1 << 44
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1 << 16
MAX_TARGET_BYTES = 4095
MAX_COUNT = 1 << 40
MTIME_NS = 1 << 62
"""Modification times within 146 years of 1970."""
PREFIX_SHAPE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*")


def read_manifest(document: Any) -> Manifest:
    """The manifest; raises `SnapshotRefused` with the first thing that is not as an honest engine writes it."""
    _require(isinstance(document, dict) and document.get("schema") == SCHEMA, "its schema is unknown")
    try:
        packs = _packs(document["packs"])
        chunks = _chunks(document["chunks"], list(packs), packs)
        entries = _entries(document["entries"], list(chunks), chunks)
        version = Version(epoch=_int(document["epoch"], MAX_COUNT), seq=_int(document["seq"], MAX_COUNT))
        prefix, taken_at = _str(document["prefix"], 1024), _str(document["taken_at"], 64)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SnapshotRefused(f"the manifest has not the shape of one: {error!r}") from None
    _require(PREFIX_SHAPE.fullmatch(prefix) is not None, f"prefix {prefix!r}")
    return Manifest(prefix, version, taken_at, entries, chunks, packs)


def _packs(rows: list[Any]) -> dict[str, Pack]:
    packs: dict[str, Pack] = {}
    for name, size, md5 in rows:
        _require(_hex(name, 64) not in packs, f"pack {name} stands twice")
        packs[name] = Pack(_int(size, MAX_PACK_BYTES, least=1), _hex(md5, 32))
    return packs


def _chunks(rows: list[Any], names: list[str], packs: dict[str, Pack]) -> dict[str, Chunk]:
    chunks: dict[str, Chunk] = {}
    for name, row, offset, stored, plain, codec in rows:
        _require(_hex(name, 64) not in chunks, f"chunk {name} stands twice")
        pack = names[_int(row, len(names) - 1)]
        _int(plain, MAX_CHUNK_BYTES, least=1)
        _int(stored, plain, least=1)
        _require(codec == "lz4" or (codec == "raw" and stored == plain), f"chunk {name} has codec {codec!r}")
        _require(_int(offset, MAX_PACK_BYTES) + stored <= packs[pack].size, f"chunk {name} lies outside its pack")
        chunks[name] = Chunk(pack, offset, stored, plain, codec)
    unused = packs.keys() - {chunk.pack for chunk in chunks.values()}
    _require(not unused, f"packs without a chunk: {sorted(unused)[:3]}")
    return chunks


def _entries(rows: list[Any], names: list[str], chunks: dict[str, Chunk]) -> tuple[Entry, ...]:
    """Each directory before its content: so no parent can be a symlink, a file, or outside the root."""
    found: dict[bytes, Entry] = {}
    for row in rows:
        entry = _entry(row, names, chunks)
        parent = found.get(entry.parent)
        inside = (not entry.path and not found) or (parent is not None and parent.kind == "dir" and entry.path != b"")
        _require(inside, f"{entry.path!r} is not inside a directory of the manifest")
        _require(entry.path not in found, f"{entry.path!r} stands twice")
        found[entry.path] = entry
    _require(b"" in found and found[b""].kind == "dir", "it has no root")
    for entry in found.values():
        if entry.kind == "hardlink":
            target = found.get(entry.target)
            _require(target is not None and target.kind == "file", f"{entry.path!r} links to no file of the manifest")
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
        _require(target != b"", f"{path!r} is a symlink to nothing")
        return Entry(path, "symlink", mode, mtime_ns, target=target)
    _require(kind == "file", f"{path!r} is of unknown kind {kind!r}")
    size, content, extents, torn = row[4:]
    read = _extents(extents, _int(size, MAX_FILE_BYTES), names, chunks)
    return Entry(path, "file", mode, mtime_ns, size, _hex(content, 32), read, torn=bool(_int(torn, 1)))


def _extents(rows: list[Any], size: int, names: list[str], chunks: dict[str, Chunk]) -> tuple[Extent, ...]:
    extents = []
    end = 0
    for at, number, start, length in rows:
        name = names[_int(number, len(names) - 1)]
        _require(_int(at, size, least=end) + _int(length, MAX_CHUNK_BYTES, least=1) <= size, "an extent past its file")
        _require(_int(start, MAX_CHUNK_BYTES) + length <= chunks[name].plain, "an extent past its chunk")
        extents.append(Extent(at, name, start, length))
        end = at + length
    return tuple(extents)


def _path(text: Any) -> bytes:
    path = _bytes(text, MAX_PATH_BYTES)
    for name in path.split(b"/") if path else ():
        _require(name not in (b"", b".", b"..") and len(name) <= MAX_NAME_BYTES, f"path {path[:80]!r}")
    return path


def _bytes(text: Any, most: int) -> bytes:
    name = _str(text, most).encode("utf-8", "surrogateescape")
    _require(len(name) <= most and b"\0" not in name, f"name {name[:80]!r}")
    return name


def _str(value: Any, most: int) -> str:
    _require(isinstance(value, str) and len(value) <= most, f"{value!r:.80} is not a text of at most {most}")
    return str(value)


def _hex(value: Any, digits: int) -> str:
    legal = isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")
    _require(legal, f"{value!r:.80} is not {digits} hex digits")
    return str(value)


def _int(value: Any, most: int, *, least: int = 0) -> int:
    legal = type(value) is int and least <= value <= most
    _require(legal, f"{value!r:.80} is not a whole number from {least} to {most}")
    return int(value)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise SnapshotRefused(f"the manifest is refused: {what}")
