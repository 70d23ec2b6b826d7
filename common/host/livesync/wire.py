"""Frames as bytes: u32 length, u8 type, and the type's fields in the order of its row in LAYOUTS. Pure.

Integers are signed 64 bits, bytes carry a u32 length before them; everything big-endian. Whatever breaks a rule or a
bound is `BadFrame`, before anything is done with it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from common.host.livesync.frames import (
    ENTRIES_MAX,
    FRAME_BYTES_MAX,
    OWNER_MAX,
    PATH_BYTES_MAX,
    PIECE_BYTES_MAX,
    TEXT_BYTES_MAX,
    Ack,
    Delete,
    Dress,
    Drop,
    Entry,
    File,
    Folder,
    Frame,
    Hello,
    Link,
    Listing,
    Mark,
    Meta,
    Move,
    PassBegin,
    PassDone,
    PassEnd,
    Piece,
    Placed,
    Refused,
    Same,
    Tail,
    Took,
    Want,
    Wants,
    Welcome,
    check_name,
    check_path,
    require,
)
from common.snapshots.limits import MAX_NAME_BYTES, MAX_TARGET_BYTES, MTIME_NS

HEAD = struct.Struct(">IB")
_I64, _U32, _DRESS = struct.Struct(">q"), struct.Struct(">I"), struct.Struct(">IqII")
One = TypeVar("One", bound=NamedTuple)


class _Field(NamedTuple):
    pack: Callable[[Any], bytes]
    read: Callable[[_Reader], Any]


class _Reader:
    """The fields of one frame; every step is checked against its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        require(end <= len(self._data), "it ends early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def end(self) -> None:
        require(self._at == len(self._data), "something follows its end")


def _bytes(limit: int, check: Callable[[bytes], None] = lambda _data: None) -> _Field:
    def read(reader: _Reader) -> bytes:
        (size,) = _U32.unpack(reader.take(_U32.size))
        require(size <= limit, f"{size} bytes where {limit} are the most")
        data = reader.take(size)
        check(data)
        return data

    return _Field(lambda data: _U32.pack(len(data)) + data, read)


def _read_count(reader: _Reader) -> int:
    (number,) = _I64.unpack(reader.take(_I64.size))
    require(number >= 0, "a number below zero")
    return int(number)


def _read_bool(reader: _Reader) -> bool:
    byte = reader.take(1)
    require(byte in (b"\0", b"\1"), "neither yes nor no")
    return byte == b"\1"


def _read_dress(reader: _Reader) -> Dress:
    dress = Dress(*_DRESS.unpack(reader.take(_DRESS.size)))
    require(dress.mode <= 0o7777, "a mode that is none")
    require(abs(dress.mtime_ns) <= MTIME_NS, "a time that is none")
    require(max(dress.uid, dress.gid) <= OWNER_MAX, "an owner that is none")
    return dress


def _check_folder(path: bytes) -> None:
    if path:
        check_path(path)


def _check_kind(kind: bytes) -> None:
    require(kind in (b"f", b"d", b"l"), "a kind that is none")


def _check_target(target: bytes) -> None:
    require(len(target) > 0 and b"\0" not in target, "a link to nowhere")


def _check_digest(digest: bytes) -> None:
    require(len(digest) in (0, 32), "a digest that is none")


NUMBER = _Field(_I64.pack, _read_count)
YES = _Field(lambda value: b"\1" if value else b"\0", _read_bool)
DRESS = _Field(lambda dress: _DRESS.pack(*dress), _read_dress)
TEXT = _bytes(TEXT_BYTES_MAX)
NAME = _bytes(MAX_NAME_BYTES, check_name)
AFTER = _bytes(MAX_NAME_BYTES)
PATH = _bytes(PATH_BYTES_MAX, check_path)
FOLDER = _bytes(PATH_BYTES_MAX, _check_folder)
TARGET = _bytes(MAX_TARGET_BYTES, _check_target)
TARGET_OR_NONE = _bytes(MAX_TARGET_BYTES)
DATA = _bytes(PIECE_BYTES_MAX)
DIGEST = _bytes(32, _check_digest)
KIND = _bytes(1, _check_kind)


def _record(kind: type[One], *fields: _Field) -> _Field:
    return _Field(
        lambda record: b"".join(field.pack(value) for field, value in zip(fields, record, strict=True)),
        lambda reader: kind(*[field.read(reader) for field in fields]),
    )


def _many(each: _Field, limit: int) -> _Field:
    def read(reader: _Reader) -> tuple[Any, ...]:
        (count,) = _U32.unpack(reader.take(_U32.size))
        require(count <= limit, f"{count} rows where {limit} are the most")
        return tuple(each.read(reader) for _ in range(count))

    return _Field(lambda rows: _U32.pack(len(rows)) + b"".join(map(each.pack, rows)), read)


ENTRY = _record(Entry, NAME, KIND, DRESS, NUMBER, TARGET_OR_NONE)
ENTRIES = _many(ENTRY, ENTRIES_MAX)
WANTS = _many(_record(Want, NAME, DIGEST), ENTRIES_MAX)

LAYOUTS: tuple[tuple[type[Any], tuple[_Field, ...]], ...] = (
    (Hello, (NUMBER, NUMBER, TEXT, TEXT)),
    (Welcome, (TEXT, NUMBER, NUMBER)),
    (Refused, (TEXT,)),
    (File, (PATH, DRESS, DATA)),
    (Placed, (NUMBER, PATH, DRESS, NUMBER)),
    (Tail, (PATH, DRESS, NUMBER, DATA)),
    (Meta, (PATH, DRESS, NUMBER)),
    (Same, (PATH, ENTRY)),
    (Link, (PATH, DRESS, TARGET)),
    (Folder, (FOLDER, DRESS)),
    (Delete, (PATH,)),
    (Move, (PATH, PATH, ENTRY)),
    (Listing, (FOLDER, AFTER, YES, YES, ENTRIES)),
    (Mark, (NUMBER, YES, NUMBER)),
    (PassBegin, (NUMBER,)),
    (PassEnd, (NUMBER, DIGEST)),
    (Piece, (NUMBER, NUMBER, YES, DATA)),
    (Drop, (NUMBER,)),
    (Ack, (NUMBER,)),
    (Took, (NUMBER, NUMBER, YES)),
    (Wants, (NUMBER, FOLDER, WANTS)),
    (PassDone, (NUMBER, DIGEST, NUMBER)),
)
"""A frame's type is its row. Rows are added at the end; one that is there never changes within a VERSION."""
NUMBER_OF = {kind: number for number, (kind, _) in enumerate(LAYOUTS)}
RECORD_OF = tuple(_record(kind, *fields) for kind, fields in LAYOUTS)


def pack(frame: Frame) -> bytes:
    """The frame as it goes over the wire."""
    number = NUMBER_OF[type(frame)]
    body = RECORD_OF[number].pack(frame)
    return HEAD.pack(len(body), number) + body


def body_bytes(head: bytes) -> int:
    """How much follows a frame's first HEAD.size bytes. Raises `BadFrame`."""
    size, number = HEAD.unpack(head)
    require(number < len(LAYOUTS), f"type {number}")
    require(size <= FRAME_BYTES_MAX, f"{size} bytes where {FRAME_BYTES_MAX} are the most")
    return int(size)


def parse(head: bytes, body: bytes) -> Frame:
    """Raises `BadFrame` for anything that `pack` does not write."""
    reader = _Reader(body)
    frame: Frame = RECORD_OF[head[-1]].read(reader)
    reader.end()
    if isinstance(frame, Listing):
        require(frame.is_last or bool(frame.entries), "a part of a listing without names")
        names = [frame.after, *(entry.name for entry in frame.entries)]
        require(all(a < b for a, b in itertools.pairwise(names)), "names out of order")
    return frame
