"""Content into chunks, each stored once: small files together in path order, large ones cut where their content says.

A cut that depends on the content moves with it, so bytes inserted into a file change one chunk or two.
"""

from __future__ import annotations

import mmap
import os
import sys
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from blake3 import blake3

from common.snapshots.codec import Plain
from common.snapshots.keys import Keys
from common.snapshots.limits import MAX_CHUNK_BYTES
from common.snapshots.manifest import Chunk
from common.snapshots.pack import PackWriter, chunk_id

SMALL_FILE_BYTES = 256 << 10
SOLID_CHUNK_BYTES = 1 << 20
"""Small files are put together until a chunk has grown so far."""
Grain = tuple[int, int, int]
"""(least, mean, most) bytes of the chunks of a large file."""
COARSE: Grain = (256 << 10, 1 << 20, MAX_CHUNK_BYTES)
FINE: Grain = (16 << 10, 64 << 10, 256 << 10)
LONG: Grain = (1 << 20, 2 << 20, MAX_CHUNK_BYTES)
FINE_FROM_BYTES, FINE_BELOW_BYTES, LONG_ABOVE_BYTES = 8 << 20, 64 << 20, 1 << 30
"""Files that are changed here and there (databases, tables, notebooks with their pictures) are mostly of this size: of
a change a chunk or two are sent. Longer ones would make manifests long, shorter ones are best written in one go. What
is longer than a GiB are weights and archives, and of their chunks all is kept in memory. A file that grows across such
a border is sent anew, once."""
WINDOW_BYTES = 8 << 20
"""Read at once of a large file: two chunks at least."""
SUM_BYTES = 16
CLAIMS_MIN, CLAIMS_MAX = 1 << 12, 1 << 24
"""Places in the table of what this snapshot has written; at most 256 MiB of memory, of which what is used exists."""
PLACES_FOR_EACH = 2
CLAIM_BYTES = 16
FREE = bytes(CLAIM_BYTES)
PROBES = 8


class Claims:
    """Which chunks and small files some worker has written already: a table in memory that all of them share.

    Only a hint that may be missed (then something is stored twice, which costs its bytes); never wrong when it says
    yes, for it compares 128 bits of a chunk's name, or of a file's sum.
    """

    def __init__(self, expected: int) -> None:
        """`expected` chunks and files at most; with more of them it misses some."""
        wanted = 1 << (PLACES_FOR_EACH * expected).bit_length()
        self._places = min(max(wanted, CLAIMS_MIN), CLAIMS_MAX)
        self._table = mmap.mmap(-1, self._places * CLAIM_BYTES)

    def has(self, mine: bytes) -> bool:
        """Was it claimed, by its first 16 bytes? If not, it is now."""
        table, places = self._table, self._places
        first = int.from_bytes(mine[:8], "little")
        for place in range(first, first + PROBES):
            at = place % places * CLAIM_BYTES
            there = table[at : at + CLAIM_BYTES]
            if there == mine:
                return True
            if there == FREE:
                table[at : at + CLAIM_BYTES] = mine
                return False
        return False


class ChunkWriter:
    """Names chunks, and writes those that neither the store nor this snapshot has."""

    def __init__(
        self, keys: Keys, known: Mapping[str, Chunk], sums: Collection[str], claims: Claims, packs: PackWriter
    ) -> None:
        """`known` are the chunks of the snapshot before, `sums` those of its small files."""
        self.tightly = False
        self._keys = keys
        self._known = known
        self._sums = sums
        self._claims = claims
        self._packs = packs

    def has_file(self, sum: str) -> bool:
        """Is a small file with that sum in the store, or has some worker taken it on? If not, the caller has now."""
        return sum in self._sums or self._claims.has(bytes.fromhex(sum))

    def add(self, plain: Plain) -> str:
        name = chunk_id(plain, self._keys)
        if name not in self._known and not self._claims.has(bytes.fromhex(name[: 2 * CLAIM_BYTES])):
            self._packs.add(name, plain, tightly=self.tightly)
        return name


def grain_of(file_bytes: int) -> Grain:
    if file_bytes > LONG_ABOVE_BYTES:
        return LONG
    return FINE if FINE_FROM_BYTES <= file_bytes < FINE_BELOW_BYTES else COARSE


def cut(fd: int, start: int, end: int, window: memoryview, grain: Grain) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of each chunk of a file's range, through `window`; ends early where the file ends early."""
    at, held, cutter = start, 0, _cutter(grain)
    while at < end:
        got = os.preadv(fd, [window[held : min(len(window), end - at)]], at + held)
        held += got
        is_last = got == 0 or at + held >= end
        pieces = [(piece.offset, piece.length) for piece in cutter.cut_buf(window[:held])] if held else []
        for offset, length in pieces if is_last else pieces[:-1]:
            yield at + offset, window[offset : offset + length]
        if is_last:
            return
        kept_from = pieces[-1][0]
        window[: held - kept_from] = window[kept_from:held]  # moved, also where the two overlap
        at, held = at + kept_from, held - kept_from


def content_sum(chunks: Iterable[str]) -> str:
    """Of a large file: a hash over its chunks' names. Of a small one it is that of its bytes (`bytes_sum`)."""
    return blake3(bytes.fromhex("".join(chunks))).hexdigest(length=SUM_BYTES)


def bytes_sum(content: Plain) -> str:
    return blake3(content).hexdigest(length=SUM_BYTES)


@cache
def _cutter(grain: Grain) -> Any:
    with _types_by("typing_extensions", typing):
        # not from the package itself, which without its compiled half goes on in Python at 7 MB/s instead of 3,400
        from pyfastcdc.cy import FastCDC

    least, mean, most = grain
    return FastCDC(avg_size=mean, min_size=least, max_size=most)


@contextmanager
def _types_by(name: str, stand_in: ModuleType) -> Iterator[None]:
    """A package may take its words for type checkers from the standard library: 10 ms of every start are saved."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]
