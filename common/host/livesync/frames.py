"""What the two ends of the live sync say to each other: typed frames over one stream of bytes. Pure.

A frame is u32 length, u8 type, and the type's fields in the order of its row in LAYOUTS: integers are signed 64 bits,
bytes carry a u32 length before them; everything big-endian. Paths are bytes relative to the workspace (names need not
be UTF-8) and never lead out of it. Whatever breaks a rule or a bound is `BadFrame`, before anything is done with it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from common.errors import DumontError
from common.snapshots.limits import MAX_NAME_BYTES, MAX_TARGET_BYTES, MTIME_NS, PART_PREFIX

PIECE_BYTES_MAX = 1 << 20
"""Of content in one frame: what a small file waits for behind a large one."""
PATH_BYTES_MAX = 1 << 16
ENTRIES_MAX = 4096
"""In one frame of a directory's listing; the next frame goes on after the last name."""
ENTRY_BYTES_MAX = 16 + MAX_NAME_BYTES + MAX_TARGET_BYTES + 64
FRAME_BYTES_MAX = 2 << 20
TEXT_BYTES_MAX = 1 << 12
"""Labels, stream ids, reasons."""
VERSION = 1
HEAD = struct.Struct(">IB")
_I64, _U32, _DRESS = struct.Struct(">q"), struct.Struct(">I"), struct.Struct(">IqII")
OWNER_MAX = (1 << 32) - 2
PARTS = PART_PREFIX + b"livesync"
"""The receiver's own directory in the root: files grow in it, no snapshot and no frame holds it."""


class BadFrame(DumontError):
    """The other end does not speak this protocol, or is hostile; the sentence says which rule it broke."""

    code = "bad_frame"
    status = 400


class Dress(NamedTuple):
    """What a name has besides its content."""

    mode: int
    mtime_ns: int
    uid: int
    gid: int


class Entry(NamedTuple):
    """One name of a directory. `kind`: b"f", b"d" or b"l"; `size` of a file, `target` of a link."""

    name: bytes
    kind: bytes
    dress: Dress
    size: int
    target: bytes


class Want(NamedTuple):
    """A name whose content the receiver lacks; `digest` (BLAKE3) of what it has, when only that can tell; or empty."""

    name: bytes
    digest: bytes


# --- both ways, once


class Hello(NamedTuple):
    """Who sends. `stream` is drawn anew whenever the sender starts and so may have missed changes."""

    version: int
    epoch: int
    label: bytes
    stream: bytes


class Welcome(NamedTuple):
    """What the receiver has: the last stream that it heard, and the version of its content."""

    stream: bytes
    epoch: int
    seq: int


class Refused(NamedTuple):
    """Nothing of this sender is taken; the connection ends."""

    reason: bytes


# --- from the sender: each is carried out in order, and counted


class File(NamedTuple):
    path: bytes
    dress: Dress
    data: bytes


class Placed(NamedTuple):
    """The pieces of a transfer are complete: under this name from now on."""

    transfer: int
    path: bytes
    dress: Dress
    size: int


class Tail(NamedTuple):
    """Appended in place to a file that is `offset` long."""

    path: bytes
    dress: Dress
    offset: int
    data: bytes


class Meta(NamedTuple):
    """The content of a file is there already (`size` bytes), by its digest; `dress` is new."""

    path: bytes
    dress: Dress
    size: int


class Same(NamedTuple):
    """Only the dress of a name seems to be new; the receiver wants the content if it has another (size, time)."""

    path: bytes
    entry: Entry


class Link(NamedTuple):
    path: bytes
    dress: Dress
    target: bytes


class Folder(NamedTuple):
    path: bytes
    dress: Dress


class Delete(NamedTuple):
    """A name, with everything below it."""

    path: bytes


class Move(NamedTuple):
    """`entry` is what bears the new name now: a file moves only if the receiver has exactly that under the old one."""

    source: bytes
    path: bytes
    entry: Entry


class Listing(NamedTuple):
    """All names of a directory after `after` and up to the last one given; beyond it too, if `is_last`."""

    path: bytes
    after: bytes
    is_last: bool
    is_of_pass: bool
    entries: tuple[Entry, ...]


class Mark(NamedTuple):
    """Every change up to `seq` lies before this in the stream. It holds only if the sender had heard all wants."""

    seq: int
    is_whole: bool
    wants_heard: int


class PassBegin(NamedTuple):
    number: int


class PassEnd(NamedTuple):
    """`root` = hash over everything that the listings of the pass said."""

    number: int
    root: bytes


# --- from the sender: content of a large file, beside the order


class Piece(NamedTuple):
    """`is_last`: make everything of the transfer durable before it is confirmed."""

    transfer: int
    offset: int
    is_last: bool
    data: bytes


class Drop(NamedTuple):
    """The transfer will not be completed."""

    transfer: int


# --- from the receiver


class Ack(NamedTuple):
    """So many ordered frames of this connection are in place, durable."""

    frames: int


class Took(NamedTuple):
    """So much of a transfer is written; `is_durable` after the last piece."""

    transfer: int
    size: int
    is_durable: bool


class Wants(NamedTuple):
    """Carrying out ordered frame number `at` showed that these names below `path` are not as the sender has them."""

    at: int
    path: bytes
    names: tuple[Want, ...]


class PassDone(NamedTuple):
    """`root` as the receiver found it; `differing` names had to be mended."""

    number: int
    root: bytes
    differing: int


Frame = (
    Hello | Welcome | Refused | File | Placed | Tail | Meta | Same | Link | Folder | Delete | Move | Listing | Mark
    | PassBegin | PassEnd | Piece | Drop | Ack | Took | Wants | PassDone
)  # fmt: skip
ORDERED = (File, Placed, Tail, Meta, Same, Link, Folder, Delete, Move, Listing, Mark, PassBegin, PassEnd)
One = TypeVar("One", bound=NamedTuple)


# --- fields


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


def require(holds: bool, what: str) -> None:
    if not holds:
        raise BadFrame(f"a frame of the live sync is refused: {what}")


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


def check_name(name: bytes) -> None:
    require(0 < len(name) <= MAX_NAME_BYTES, "an empty or overlong name")
    require(name not in (b".", b"..") and b"\0" not in name and b"/" not in name, "a name that is none")
    require(not name.startswith(PART_PREFIX), "a name that only the receiver uses")


def check_path(path: bytes) -> None:
    """Raises `BadFrame` for anything but names joined by single slashes."""
    for name in path.split(b"/"):
        check_name(name)


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


def listings(path: bytes, entries: list[Entry], *, is_of_pass: bool) -> Iterator[Listing]:
    """A directory in as many frames as it needs; `entries` in the order of their names."""
    rows: list[Entry] = []
    after, size = b"", 0
    for entry in entries:
        cost = ENTRY_BYTES_MAX - MAX_NAME_BYTES - MAX_TARGET_BYTES + len(entry.name) + len(entry.target)
        if rows and (len(rows) == ENTRIES_MAX or size + cost > FRAME_BYTES_MAX - PATH_BYTES_MAX - TEXT_BYTES_MAX):
            yield Listing(path, after, False, is_of_pass, tuple(rows))
            after, rows, size = rows[-1].name, [], 0
        rows.append(entry)
        size += cost
    yield Listing(path, after, True, is_of_pass, tuple(rows))


def essence(path: bytes, entries: Iterable[Entry]) -> bytes:
    """What a root hash is made of: names, kinds, modes, and of files size and time. A directory's time is not in it:
    it changes with every name that is put into it, on both sides at moments of their own."""
    rows = [_U32.pack(len(path)), path]
    for name, kind, dress, size, target in entries:
        is_file = kind == b"f"
        fixed = struct.pack(">HIqq", len(name), dress.mode, dress.mtime_ns if is_file else 0, size if is_file else 0)
        rows += [kind, fixed, name, _U32.pack(len(target)), target]
    return b"".join(rows)
