"""What a shared library needs of a newer glibc is made optional: it is loaded by an older one, too.

Debian 12 links its Python with an expat that wants one function of glibc 2.36, and the agent never calls expat (its XML
is read by `common.snapshots.markup`). A dynamic loader lets a library have what is not there when both the version and
the symbol are weak (gabi, "Symbol Table"; glibc, elf/dl-version.c). Whoever calls it all the same ends there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

Version = tuple[int, int]
LOAD, STRINGS, SYMBOLS, VERSION_OF_SYMBOLS, NEEDS, NEEDS_COUNT = 1, 5, 6, 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF
DYNAMIC = 2
WEAK_VERSION = 2
WEAK_SYMBOL = 2
HEADER_TYPE = b"\x7fELF\x02\x01"
"""64 bits, little-endian."""


def ease(path: Path, newest: Version) -> list[str]:
    """The names of glibc's versions above `newest` that this library, which is rewritten, no longer insists on."""
    content = bytearray(path.read_bytes())
    if content[: len(HEADER_TYPE)] != HEADER_TYPE:
        raise ValueError(f"{path.name} is no library for 64 bits")
    library = Library(content)
    eased = {need.index: need for need in library.needs() if need.version and need.version > newest}
    for need in eased.values():
        struct.pack_into("<H", content, need.flags_at, WEAK_VERSION)
    for number, index in library.versions_of_symbols():
        if index in eased:
            library.weaken(number)
    path.write_bytes(content)
    return sorted(need.name for need in eased.values())


class Need:
    def __init__(self, name: str, index: int, flags_at: int) -> None:
        self.name, self.index, self.flags_at = name, index, flags_at

    @property
    def version(self) -> Version | None:
        kind, _, number = self.name.partition("_")
        parts = number.split(".")
        return (int(parts[0]), int(parts[1])) if kind == "GLIBC" and len(parts) > 1 and parts[1].isdigit() else None


class Library:
    """Where its tables are. The layouts are those of <elf.h>."""

    def __init__(self, content: bytearray) -> None:
        self.content = content
        (start,), (size, count) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<HH", content, 54)
        headers = [struct.unpack_from("<IIQQQQ", content, start + number * size) for number in range(count)]
        self._loaded: list[tuple[int, int, int]] = [
            (address, at, length) for kind, _, at, address, _, length in headers if kind == LOAD
        ]
        dynamic, length = next((at, length) for kind, _, at, _, _, length in headers if kind == DYNAMIC)
        self._table = dict(struct.iter_unpack("<QQ", content[dynamic : dynamic + length]))

    def _at(self, tag: int) -> int:
        address = int(self._table[tag])
        return next(address - start + at for start, at, length in self._loaded if start <= address < start + length)

    def needs(self) -> Iterator[Need]:
        """Verneed, and the Vernaux of each."""
        if NEEDS not in self._table:
            return
        at = self._at(NEEDS)
        for _ in range(self._table[NEEDS_COUNT]):
            _, count, _, first, following = struct.unpack_from("<HHIII", self.content, at)
            inner = at + first
            for _ in range(count):
                _, _, index, name, next_inner = struct.unpack_from("<IHHII", self.content, inner)
                yield Need(self._text(name), index, inner + 4)
                inner += next_inner
            at += following

    def versions_of_symbols(self) -> Iterator[tuple[int, int]]:
        """(number of the symbol, index of its version). The table of symbols ends where that of their names begins."""
        count = (self._at(STRINGS) - self._at(SYMBOLS)) // 24
        yield from enumerate(struct.unpack_from(f"<{count}H", self.content, self._at(VERSION_OF_SYMBOLS)))

    def weaken(self, number: int) -> None:
        at = self._at(SYMBOLS) + number * 24 + 4
        self.content[at] = WEAK_SYMBOL << 4 | self.content[at] & 15

    def _text(self, offset: int) -> str:
        start = self._at(STRINGS) + offset
        return self.content[start : self.content.index(0, start)].decode()
