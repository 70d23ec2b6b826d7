"""What the two ends of the live sync say to each other: typed frames over one stream of bytes. Pure.

Paths are bytes relative to the workspace (names need not be UTF-8) and never lead out of it. How frames become bytes
stands in `wire`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.errors import DumontError
from common.snapshots.limits import MAX_NAME_BYTES, MAX_TARGET_BYTES, PART_PREFIX

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


def require(holds: bool, what: str) -> None:
    if not holds:
        raise BadFrame(f"a frame of the live sync is refused: {what}")


def check_name(name: bytes) -> None:
    require(0 < len(name) <= MAX_NAME_BYTES, "an empty or overlong name")
    require(name not in (b".", b"..") and b"\0" not in name and b"/" not in name, "a name that is none")
    require(not name.startswith(PART_PREFIX), "a name that only the receiver uses")


def check_path(path: bytes) -> None:
    """Raises `BadFrame` for anything but names joined by single slashes."""
    for name in path.split(b"/"):
        check_name(name)


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
    rows = [struct.pack(">I", len(path)), path]
    for name, kind, dress, size, target in entries:
        is_file = kind == b"f"
        fixed = struct.pack(">HIqq", len(name), dress.mode, dress.mtime_ns if is_file else 0, size if is_file else 0)
        rows += [kind, fixed, name, struct.pack(">I", len(target)), target]
    return b"".join(rows)
