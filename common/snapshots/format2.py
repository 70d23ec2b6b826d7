"""Format 2 of a manifest: columns of numbers and names, in one LZ4 block, so that 28,000 files load in tens of ms.

Plain: `header size (4 bytes) | header (JSON) | columns`, every column exactly as long as the header's counts say. All
numbers are little endian. Entries stand in the order of their paths, each path once; so a directory stands before what
it holds. Nothing that is read is believed: a host that holds the key may be hostile. Times are of 146 years around 1970
(`MTIME_NS`): a file dated further away is in a snapshot with the nearest time that is, and is restored with it.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, compress, islice, repeat
from operator import add, itemgetter, le, lt
from typing import Any, TypeVar

from common.domain.version import Version
from common.errors import SnapshotRefused
from common.snapshots.limits import (
    MAX_CHUNK_BYTES,
    MAX_COUNT,
    MAX_FILE_BYTES,
    MAX_NAME_BYTES,
    MAX_PACK_BYTES,
    MAX_PATH_BYTES,
    MAX_TARGET_BYTES,
    MAX_XATTR_BYTES,
    MAX_XATTRS,
    MTIME_NS,
    PART_PREFIX,
    PREFIX_SHAPE,
    require,
)
from common.snapshots.manifest import NOBODY, TAG_BYTES, Chunk, Codec, Entry, Extent, Kind, Manifest, Pack

T = TypeVar("T")
SCHEMA = 2
KINDS: tuple[Kind, ...] = ("file", "dir", "symlink", "hardlink")
FILE, DIR, SYMLINK, HARDLINK = range(4)
TORN = 16
"""Added to the kind of a file."""
KIND_CODES = {(kind, is_torn): row + TORN * is_torn for row, kind in enumerate(KINDS) for is_torn in (False, True)}
KIND_NAMES = {code: kind for (kind, _), code in KIND_CODES.items()}
KIND_AND_TORN, MODE_OF, TIME_OF, SIZE_OF, SUM_OF, EXTENTS_OF, OWNERS = (
    itemgetter(*map(Entry._fields.index, names))
    for names in (
        ("kind", "torn"), ("mode",), ("mtime_ns",), ("size",), ("sum",), ("extents",), ("uid", "gid")
    )
)  # fmt: skip
"""A column at a time: a list of each, of a million entries, would take more than the columns."""
CODECS: tuple[Codec, ...] = ("raw", "lz4", "zstd", "bits2", "bits4", "floats2", "floats4")
UNKNOWN_OWNER = (1 << 32) - 1
"""No owner has that number; all others of 32 bits are one's."""
ID_BYTES, MD5_BYTES, SALT_BYTES, SUM_BYTES = 32, 16, 16, 16
NO_SALT = b"\0" * SALT_BYTES
"""A pack that is not encrypted. 128 random bits are never all zero in practice, and if they were, nothing decodes."""
CLIMBING = (b"//", b"/./", b"/../")

# --- writing


def encode(manifest: Manifest) -> bytes:
    """The plain bytes; raises nothing for what the reader would refuse (`check` does), but OverflowError for a number
    that no column holds."""
    entries = sorted(manifest.entries, key=itemgetter(0))
    pack_rows = {name: row for row, name in enumerate(manifest.packs)}
    chunk_rows = {name: row for row, name in enumerate(manifest.chunks)}
    packs, chunks = manifest.packs.values(), manifest.chunks.values()
    files = [entry for entry in entries if entry.kind == "file"]
    extents = list(chain.from_iterable(map(EXTENTS_OF, files)))
    columns: list[bytes] = [
        bytes.fromhex("".join(manifest.packs)),
        bytes.fromhex("".join(pack.md5 for pack in packs)),
        b"".join(bytes.fromhex(pack.salt) if pack.salt else NO_SALT for pack in packs),
        _numbers("I", (pack.size for pack in packs)),
        bytes.fromhex("".join(manifest.chunks)),
        _numbers("I", (pack_rows[chunk.pack] for chunk in chunks)),
        _numbers("I", (chunk.offset for chunk in chunks)),
        _numbers("I", (chunk.stored for chunk in chunks)),
        _numbers("I", (chunk.plain for chunk in chunks)),
        bytes(CODECS.index(chunk.codec) for chunk in chunks),
        bytes(map(KIND_CODES.__getitem__, map(KIND_AND_TORN, entries))),
        _numbers("H", map(MODE_OF, entries)),
        _numbers(
            "I", (UNKNOWN_OWNER if owner == NOBODY else owner for owner in chain.from_iterable(map(OWNERS, entries)))
        ),
        _numbers("q", map(TIME_OF, entries)),
        _numbers("Q", map(SIZE_OF, files)),
        bytes.fromhex("".join(map(SUM_OF, files))),
        _numbers("I", map(len, map(EXTENTS_OF, files))),
        _numbers("Q", map(itemgetter(0), extents)),
        _numbers("I", map(chunk_rows.__getitem__, map(itemgetter(1), extents))),
        _numbers("I", map(itemgetter(2), extents)),
        _numbers("I", map(itemgetter(3), extents)),
    ]
    paths = b"\0".join(map(itemgetter(0), entries))
    targets = b"\0".join([entry.target for entry in entries if entry.kind in ("symlink", "hardlink")])
    xattrs = [[row, name, value.hex()] for row, e in enumerate(entries) if e.xattrs for name, value in e.xattrs]
    header = {
        "schema": SCHEMA,
        "prefix": manifest.prefix,
        "epoch": manifest.version.epoch,
        "seq": manifest.version.seq,
        "taken_at": manifest.taken_at,
        "packs": len(packs),
        "chunks": len(chunks),
        "entries": len(entries),
        "files": len(files),
        "extents": len(extents),
        "paths_bytes": len(paths),
        "targets_bytes": len(targets),
        "xattrs": xattrs,
    }
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    return b"".join([len(head).to_bytes(4, "little"), head, *columns, paths, targets])


def _numbers(code: str, values: Iterable[int]) -> bytes:
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


# --- reading


def decode(plain: bytes) -> Manifest:
    """The manifest; raises `SnapshotRefused` with the first thing that is not as an honest engine writes it."""
    with _shaped():
        return _manifest(_read(plain))


def check(plain: bytes) -> tuple[str, Version]:
    """Raises whatever `decode` would: the same rules, without the entries, which are most of what decoding costs.

    The prefix and the version that it says.
    """
    with _shaped():
        rows = _read(plain)
        return rows.prefix, rows.version


@contextmanager
def _shaped() -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SnapshotRefused(f"the manifest has not the shape of one: {error!r:.200}") from None


class _Columns:
    """Hands out the plain bytes from front to back; never more than there are."""

    def __init__(self, plain: bytes) -> None:
        self._plain = memoryview(plain)
        self._at = 0
        self.header: dict[str, Any] = json.loads(bytes(self.raw(int.from_bytes(self.raw(4), "little"))))
        require(isinstance(self.header, dict) and self.header.get("schema") == SCHEMA, "its schema is unknown")

    def count(self, name: str) -> int:
        return number(self.header[name], len(self._plain))

    def raw(self, size: int) -> memoryview:
        require(size <= len(self._plain) - self._at, "it ends too early")
        self._at += size
        return self._plain[self._at - size : self._at]

    def numbers(self, code: str, count: int) -> array[int]:
        column: array[int] = array(code)
        column.frombytes(self.raw(count * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column

    def hexes(self, count: int, size: int) -> list[str]:
        return _hexes(self.raw(count * size), size)

    def names(self, size: int, count: int) -> list[bytes]:
        """`count` NUL-separated names."""
        names = bytes(self.raw(size)).split(b"\0") if count else []
        require(len(names) == count and (count > 0 or size == 0), f"{len(names)} names, not {count}")
        return names

    def end(self) -> None:
        require(self._at == len(self._plain), "something follows its end")


def _hexes(column: memoryview, size: int) -> list[str]:
    text, step = column.hex(), 2 * size
    return [text[at : at + step] for at in range(0, len(text), step)]


@dataclass
class _Extents:
    """Of all files, each a column."""

    at: array[int]
    chunks: Sequence[int]
    """Which of the manifest's."""
    starts: Sequence[int]
    lengths: Sequence[int]


@dataclass
class _Rows:
    """What a manifest is made of; of its entries, each is a column. All of it was checked."""

    prefix: str
    version: Version
    taken_at: str
    packs: dict[str, Pack]
    chunks: dict[str, Chunk]
    kinds: bytes
    modes: Sequence[int]
    owners: Sequence[int]
    mtimes_ns: Sequence[int]
    sizes: Sequence[int]
    sums: memoryview
    counts: Sequence[int]
    extents: _Extents
    paths: list[bytes]
    targets: list[bytes]
    xattrs: dict[int, tuple[tuple[str, bytes], ...]]


def _read(plain: bytes) -> _Rows:
    columns = _Columns(plain)
    rows = _rows(columns)
    columns.end()
    _check_numbers(rows)
    _check_extents(rows)
    _check_paths(rows.paths, rows.kinds)
    _check_targets(rows)
    return rows


def _rows(columns: _Columns) -> _Rows:
    header = columns.header
    version = Version(epoch=number(header["epoch"], MAX_COUNT), seq=number(header["seq"], MAX_COUNT))
    prefix, taken_at = text(header["prefix"], 1024), text(header["taken_at"], 64)
    require(PREFIX_SHAPE.fullmatch(prefix) is not None, f"prefix {prefix!r}")
    packs = _packs(columns, columns.count("packs"))
    chunks = _chunks(columns, columns.count("chunks"), packs)
    n, files = columns.count("entries"), columns.count("files")
    kinds = bytes(columns.raw(n))
    legal = set(kinds) <= {FILE, DIR, SYMLINK, HARDLINK, FILE + TORN}
    require(legal and kinds.count(FILE) + kinds.count(FILE + TORN) == files, "an unknown kind, or files miscounted")
    return _Rows(
        prefix=prefix,
        version=version,
        taken_at=taken_at,
        packs=packs,
        chunks=chunks,
        kinds=kinds,
        modes=columns.numbers("H", n),
        owners=columns.numbers("I", 2 * n),
        mtimes_ns=columns.numbers("q", n),
        sizes=columns.numbers("Q", files),
        sums=columns.raw(files * SUM_BYTES),
        counts=columns.numbers("I", files),
        extents=_extents(columns, columns.count("extents")),
        paths=columns.names(columns.count("paths_bytes"), n),
        targets=columns.names(columns.count("targets_bytes"), kinds.count(SYMLINK) + kinds.count(HARDLINK)),
        xattrs=_xattrs(header["xattrs"], n),
    )


def _packs(columns: _Columns, count: int) -> dict[str, Pack]:
    names, md5s = columns.hexes(count, ID_BYTES), columns.hexes(count, MD5_BYTES)
    salts, sizes = columns.hexes(count, SALT_BYTES), columns.numbers("I", count)
    none = NO_SALT.hex()
    packs = {
        name: Pack(size, md5, "" if salt == none else salt)
        for name, size, md5, salt in zip(names, sizes, md5s, salts, strict=True)
    }
    require(len(packs) == count, "a pack stands twice")
    require(not count or (min(sizes) >= 1 and max(sizes) <= MAX_PACK_BYTES), "a pack of an absurd size")
    return packs


def _chunks(columns: _Columns, count: int, packs: dict[str, Pack]) -> dict[str, Chunk]:
    names, pack_names = columns.hexes(count, ID_BYTES), list(packs)
    pack_rows, offsets = columns.numbers("I", count), columns.numbers("I", count)
    stored, plain, codecs = columns.numbers("I", count), columns.numbers("I", count), columns.raw(count)
    require(
        max(pack_rows, default=-1) < len(packs) and max(codecs, default=-1) < len(CODECS), "an unknown pack or codec"
    )
    rows = zip(
        [pack_names[row] for row in pack_rows], offsets, stored, plain, [CODECS[code] for code in codecs], strict=True
    )
    chunks = dict(zip(names, map(partial(tuple.__new__, Chunk), rows), strict=True))
    require(len(chunks) == count, "a chunk stands twice")
    for name, chunk in chunks.items():
        tag = TAG_BYTES if packs[chunk.pack].salt else 0
        right_size = tag < chunk.stored <= chunk.plain + tag <= MAX_CHUNK_BYTES + tag
        right_raw = chunk.codec != "raw" or chunk.stored == chunk.plain + tag
        inside = chunk.offset + chunk.stored <= packs[chunk.pack].size
        require(right_size and right_raw and inside, f"chunk {name} is of an absurd size, or outside its pack")
    require(len(set(pack_rows)) == len(packs), "a pack without a chunk")
    return chunks


def _extents(columns: _Columns, count: int) -> _Extents:
    at, chunks = columns.numbers("Q", count), columns.numbers("I", count)
    return _Extents(at, chunks, columns.numbers("I", count), columns.numbers("I", count))


def _xattrs(rows: Any, entries: int) -> dict[int, tuple[tuple[str, bytes], ...]]:
    found: dict[int, tuple[tuple[str, bytes], ...]] = {}
    for row, name, value in rows:
        legal = len(text(name, MAX_NAME_BYTES)) > 0 and "\0" not in name and len(value) <= 2 * MAX_XATTR_BYTES
        have = found.get(number(row, entries - 1), ())
        require(legal and len(have) < MAX_XATTRS, f"attribute {name!r:.80}")
        found[row] = (*have, (name, bytes.fromhex(value)))
    return found


def _check_numbers(rows: _Rows) -> None:
    require(max(rows.modes, default=0) <= 0o7777, "an absurd mode")
    require(-MTIME_NS <= min(rows.mtimes_ns, default=0) <= max(rows.mtimes_ns, default=0) <= MTIME_NS, "an absurd time")
    require(max(rows.sizes, default=0) <= MAX_FILE_BYTES, "an absurd size")


def _check_extents(rows: _Rows) -> None:
    """Those of a file are in order, apart, and inside the file: each ends before the next begins, or where the file
    does."""
    extents, plain = rows.extents, [chunk.plain for chunk in rows.chunks.values()]
    at, lengths = extents.at, extents.lengths
    require(max(extents.chunks, default=-1) < len(plain), "an unknown chunk")
    require(not at or (min(lengths) >= 1 and max(at) <= MAX_FILE_BYTES), "an extent of nothing, or far outside")
    inside = map(le, map(add, extents.starts, lengths), map(plain.__getitem__, extents.chunks))
    require(all(inside), "an extent past its chunk")
    require(sum(rows.counts) == len(at), "extents miscounted")
    bounds = at[1:] + at[:1]
    for last, size in zip(
        compress(accumulate(rows.counts), rows.counts), compress(rows.sizes, rows.counts), strict=True
    ):
        bounds[last - 1] = size
    require(all(map(le, map(add, at, lengths), bounds)), "extents that overlap, or one past its file")


def _check_paths(paths: list[bytes], kinds: bytes) -> None:
    """Each once, below a directory of the manifest: no parent can be a symlink, a file, or outside the root."""
    require(len(paths) > 0 and paths[0] == b"" and kinds[0] == DIR, "it has no root")
    require(all(map(lt, paths, islice(paths, 1, None))), "its paths are not in order, or one stands twice")
    longest = max(map(len, paths))
    require(longest <= MAX_PATH_BYTES, "a path of an absurd length")
    steps = b"/".join([b"", *paths[1:], b""])  # all in one: looked through as one text, which costs next to nothing
    require(not any(step in steps for step in CLIMBING), "a path that climbs or has an empty step")
    require(b"/" + PART_PREFIX not in steps, "a name that only a restore uses")
    if longest > MAX_NAME_BYTES:
        require(max(map(len, steps.split(b"/"))) <= MAX_NAME_BYTES, "a name of an absurd length")
    parents = {path.rpartition(b"/")[0] for path in islice(paths, 1, None)}
    dirs = set(compress(paths, map(DIR.__eq__, kinds)))
    require(parents <= dirs, "a path that is not inside a directory of the manifest")


def _check_targets(rows: _Rows) -> None:
    kinds = rows.kinds.translate(None, bytes((FILE, DIR, FILE + TORN)))
    for target, kind in zip(rows.targets, kinds, strict=True):
        require(0 < len(target) <= (MAX_TARGET_BYTES if kind == SYMLINK else MAX_PATH_BYTES), "a link to nothing")
    links = {target for target, kind in zip(rows.targets, kinds, strict=True) if kind == HARDLINK}
    files = set(compress(rows.paths, [kind in (FILE, FILE + TORN) for kind in rows.kinds])) if links else set()
    require(links <= files, "a hardlink to no file of the manifest")


# --- what was read, as entries


def _manifest(rows: _Rows) -> Manifest:
    return Manifest(rows.prefix, rows.version, rows.taken_at, tuple(_entries(rows)), rows.chunks, rows.packs)


def _entries(rows: _Rows) -> Iterator[Entry]:
    """Put together by columns, which costs a tenth of making each entry by itself."""
    count = len(rows.paths)
    is_file = [kind in (FILE, FILE + TORN) for kind in rows.kinds]
    is_link = [kind in (SYMLINK, HARDLINK) for kind in rows.kinds]
    owners = [NOBODY if owner == UNKNOWN_OWNER else owner for owner in rows.owners]
    columns = zip(
        rows.paths,
        map(KIND_NAMES.__getitem__, rows.kinds),
        rows.modes,
        rows.mtimes_ns,
        _spread(rows.sizes, is_file, 0),
        _spread(_hexes(rows.sums, SUM_BYTES), is_file, ""),
        _spread(_extents_of(rows), is_file, ()),
        _spread(rows.targets, is_link, b""),
        [kind == FILE + TORN for kind in rows.kinds],
        owners[::2],
        owners[1::2],
        map(rows.xattrs.get, range(count), repeat(())),
        strict=True,
    )
    return map(partial(tuple.__new__, Entry), columns)


def _spread(values: Iterable[T], places: list[bool], other: T) -> list[T]:
    """One for each row: the next value where there is a place for it."""
    following = iter(values)
    return [next(following) if is_place else other for is_place in places]


def _extents_of(rows: _Rows) -> Iterator[tuple[Extent, ...]]:
    """Of each file."""
    all_of_them, names = rows.extents, list(rows.chunks)
    columns = zip(
        all_of_them.at,
        map(names.__getitem__, all_of_them.chunks),
        all_of_them.starts,
        all_of_them.lengths,
        strict=True,
    )
    following = map(partial(tuple.__new__, Extent), columns)
    return (tuple(islice(following, count)) for count in rows.counts)


def number(value: Any, most: int) -> int:
    require(type(value) is int and 0 <= value <= most, f"{value!r:.80} is not a whole number from 0 to {most}")
    return int(value)


def text(value: Any, most: int) -> str:
    require(isinstance(value, str) and len(value) <= most, f"{value!r:.80} is not a text of at most {most}")
    return str(value)
