"""Frames: what is said arrives as it was said, and nothing hostile gets in."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from common.host.livesync import frames, wire
from common.host.livesync.frames import (
    ENTRIES_MAX,
    FRAME_BYTES_MAX,
    Ack,
    BadFrame,
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
)

DRESS = Dress(0o4755, -5, 0, 1000)
ENTRY = Entry(b"name \xff", b"f", DRESS, 1 << 40, b"")
ALL: tuple[Frame, ...] = (
    Hello(1, 7, b"label", b"stream"),
    Welcome(b"", 7, 1 << 60),
    Refused("für dich nicht".encode()),
    File(b"a/b \xff\n", DRESS, b"\0content"),
    Placed(3, b"a", DRESS, 1 << 33),
    Tail(b"log", DRESS, 5, b"more"),
    Meta(b"a", DRESS, 0),
    Same(b"a", ENTRY),
    Link(b"l", DRESS, b"/etc/../x"),
    Folder(b"", DRESS),
    Delete(b"a/b/c"),
    Move(b"a", b"b", ENTRY),
    Listing(b"", b"", True, False, ()),
    Listing(b"d", b"a", False, True, (ENTRY, Entry(b"z", b"l", DRESS, 0, b"t"))),
    Mark(9, True, 2),
    PassBegin(1),
    PassEnd(1, b"\1" * 32),
    Piece(1, 1 << 30, True, b"x" * (1 << 20)),
    Drop(1),
    Ack(12),
    Took(1, 2, False),
    Wants(4, b"", (Want(b"a", b""), Want(b"b", b"\2" * 32))),
    PassDone(1, b"", 3),
)


def parsed(data: bytes) -> Frame:
    head, body = data[: wire.HEAD.size], data[wire.HEAD.size :]
    assert wire.body_bytes(head) == len(body)
    return wire.parse(head, body)


def test_every_kind_of_frame_arrives_as_it_was_said() -> None:
    assert {type(frame) for frame in ALL} == {kind for kind, _ in wire.LAYOUTS}
    for frame in ALL:
        assert parsed(wire.pack(frame)) == frame


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/etc/passwd",
        b"..",
        b"a/../b",
        b"a//b",
        b"a/",
        b".",
        b"a/./b",
        b"a\0b",
        b"x" * 256,
        b"a/.dumont-part-livesync/1",
        b"x/" * 40_000 + b"x",
    ],
)
def test_no_path_leads_out_of_the_workspace_or_into_the_receivers_own(path: bytes) -> None:
    for frame in (File(path, DRESS, b""), Delete(path), Move(b"a", path, ENTRY), Move(path, b"a", ENTRY)):
        with pytest.raises(BadFrame):
            parsed(wire.pack(frame))


@pytest.mark.parametrize(
    "frame",
    [
        Ack(-1),
        Piece(1, -1, False, b""),
        File(b"a", DRESS._replace(mode=0o10000), b""),
        File(b"a", DRESS._replace(mtime_ns=1 << 62 | 1), b""),
        File(b"a", DRESS, b"x" * ((1 << 20) + 1)),
        Link(b"a", DRESS, b""),
        Link(b"a", DRESS, b"x\0"),
        PassEnd(1, b"short"),
        Same(b"a", ENTRY._replace(kind=b"c")),
        Listing(b"", b"", False, False, ()),
        Listing(b"", b"", True, False, (ENTRY, ENTRY)),
        Listing(b"", b"z", True, False, (ENTRY,)),
        Listing(b"", b"", True, False, (ENTRY._replace(name=b".."),)),
        Wants(1, b"", (Want(b"a/b", b""),)),
    ],
)
def test_what_breaks_a_rule_or_a_bound_is_one_typed_error(frame: Any) -> None:
    with pytest.raises(BadFrame):
        parsed(wire.pack(frame))


def test_a_length_or_a_type_that_is_none_is_refused_before_anything_is_read() -> None:
    for head in (wire.HEAD.pack(FRAME_BYTES_MAX + 1, 3), wire.HEAD.pack(0, 250)):
        with pytest.raises(BadFrame):
            wire.body_bytes(head)


def test_rows_without_end_are_refused_by_their_number() -> None:
    body = struct.pack(">I", 0) + struct.pack(">I", 0) + b"\1\0" + struct.pack(">I", ENTRIES_MAX + 1)

    with pytest.raises(BadFrame, match="rows"):
        wire.parse(wire.HEAD.pack(len(body), wire.NUMBER_OF[Listing]), body)


def test_random_damage_gives_the_typed_error_or_another_frame_and_nothing_else() -> None:
    chance = random.Random(6)
    for _ in range(20_000):
        data = bytearray(wire.pack(chance.choice([frame for frame in ALL if not isinstance(frame, Piece)])))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(wire.HEAD.size, len(data))] ^= 1 << chance.randrange(8)
        del data[chance.choice([len(data), chance.randrange(wire.HEAD.size, len(data) + 1)]) :]
        try:
            wire.parse(bytes(data[: wire.HEAD.size]), bytes(data[wire.HEAD.size :]))
        except BadFrame:
            continue


def test_a_directory_of_any_size_goes_in_listings_that_cover_all_names_once() -> None:
    entries = [Entry(b"%06d" % number, b"f", DRESS, number, b"") for number in range(3 * ENTRIES_MAX + 1)]
    parts = [parsed(wire.pack(part)) for part in frames.listings(b"d", entries, is_of_pass=False)]

    assert [entry for part in parts for entry in part.entries] == entries  # type: ignore[union-attr]
    assert [part.is_last for part in parts] == [False, False, False, True]  # type: ignore[union-attr]
    assert [part.after for part in parts[1:]] == [part.entries[-1].name for part in parts[:-1]]  # type: ignore[union-attr]
