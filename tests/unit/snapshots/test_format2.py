"""A manifest may be authentic and still be an attack: each of these is refused before anything is done with it."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.domain.version import Version
from common.errors import SnapshotRefused
from common.snapshots import format2, seal
from common.snapshots.limits import MAX_MANIFEST_BYTES
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack
from tests.snapshots_fixtures import KEY, PREFIX, Box, tree

CHUNK, PACK, MD5, SALT, SUM = "c" * 64, "d" * 64, "e" * 32, "a" * 32, "f" * 32
A = Entry(b"a", "file", 0o644, 7, 100, SUM, (Extent(0, CHUNK, 0, 100),), uid=1, gid=2, xattrs=(("user.x", b"\0\xff"),))


def honest() -> Manifest:
    return Manifest(
        prefix=PREFIX,
        version=Version(epoch=1, seq=1),
        taken_at="2026-01-02T03:04:00+00:00",
        entries=(
            Entry(b"", "dir", 0o755, 0),
            A,
            Entry(b"caf\xe9", "file", 0, -5, 50, SUM, (), torn=True),
            Entry(b"d", "dir", 0o755, 0, uid=0, gid=0),
            Entry(b"d/h", "hardlink", target=b"a"),
            Entry(b"l", "symlink", 0o777, 0, target=b"/etc"),
        ),
        chunks={CHUNK: Chunk(PACK, 0, 116, 100, "raw")},
        packs={PACK: Pack(116, MD5, SALT)},
    )


def with_entry(*entries: Entry) -> Callable[[], Manifest]:
    return lambda: replace(honest(), entries=(*honest().entries, *entries))


def with_a(**changes: Any) -> Callable[[], Manifest]:
    entries = tuple(A._replace(**changes) if entry == A else entry for entry in honest().entries)
    return lambda: replace(honest(), entries=entries)


def with_extents(*extents: tuple[int, int, int]) -> Callable[[], Manifest]:
    return with_a(extents=tuple(Extent(at, CHUNK, start, length) for at, start, length in extents))


def with_chunk(**changes: Any) -> Callable[[], Manifest]:
    return lambda: replace(honest(), chunks={CHUNK: honest().chunks[CHUNK]._replace(**changes)})


ATTACKS: dict[str, Callable[[], Manifest]] = {
    "climbs": with_entry(Entry(b"../evil", "dir", 0o755)),
    "climbs inside": with_entry(Entry(b"d/../../evil", "dir", 0o755)),
    "is absolute": with_entry(Entry(b"/etc/cron.d", "dir", 0o755)),
    "is a dot": with_entry(Entry(b".", "dir", 0o755)),
    "has an empty step": with_entry(Entry(b"d//x", "dir", 0o755)),
    "ends in a slash": with_entry(Entry(b"d/", "dir", 0o755)),
    "has a NUL": with_entry(Entry(b"d/a\0b", "dir", 0o755)),
    "has a name of 256 bytes": with_entry(Entry(b"d/" + b"x" * 256, "dir", 0o755)),
    "has the name of a part": with_entry(Entry(b"d/.dumont-part-00", "dir", 0o755)),
    "goes through a symlink": with_entry(Entry(b"l/passwd", "file", 0o644, 0, 0, SUM)),
    "goes through a file": with_entry(Entry(b"a/x", "dir", 0o755)),
    "goes through nothing": with_entry(Entry(b"no/x", "dir", 0o755)),
    "stands twice": with_entry(Entry(b"a", "symlink", 0o777, target=b"/etc")),
    "is a second root": with_entry(Entry(b"", "dir", 0o755)),
    "links outside": with_entry(Entry(b"h", "hardlink", target=b"../../etc/passwd")),
    "links to a symlink": with_entry(Entry(b"h", "hardlink", target=b"l")),
    "links to a directory": with_entry(Entry(b"h", "hardlink", target=b"d")),
    "links to itself": with_entry(Entry(b"h", "hardlink", target=b"h")),
    "is a symlink to nothing": with_entry(Entry(b"s", "symlink", 0o777, target=b"")),
    "is a symlink of absurd length": with_entry(Entry(b"s", "symlink", 0o777, target=b"x" * 4096)),
    "has an absurd size": with_a(size=1 << 60),
    "has an absurd mode": with_a(mode=0o100644 & 0xFFFF),
    "has an absurd time": with_a(mtime_ns=(1 << 62) + 1),
    "has too many attributes": with_a(xattrs=tuple((f"user.{n}", b"") for n in range(65))),
    "has an attribute without a name": with_a(xattrs=(("", b""),)),
    "has an absurd attribute": with_a(xattrs=(("user.x", b"x" * ((1 << 16) + 1)),)),
    "reads past its chunk": with_extents((0, 1, 100)),
    "writes past its size": with_extents((1, 0, 100)),
    "writes backwards": with_extents((50, 0, 10), (0, 0, 10)),
    "has an extent of nothing": with_extents((0, 0, 0)),
    "lies about a chunk's length": with_chunk(plain=50),
    "holds a bomb": with_chunk(plain=1 << 30, codec="lz4"),
    "holds nothing but a tag": with_chunk(stored=16),
    "reads past its pack": with_chunk(offset=1),
    "has an absurd pack": lambda: replace(honest(), packs={PACK: Pack(1 << 30, MD5, SALT)}),
    "has a pack without a chunk": lambda: replace(honest(), packs={**honest().packs, "b" * 64: Pack(1, MD5, SALT)}),
    "has no entries": lambda: replace(honest(), entries=()),
    "has no root": lambda: replace(honest(), entries=honest().entries[1:]),
    "has a prefix that climbs": lambda: replace(honest(), prefix="../"),
}


def test_what_is_sealed_is_what_is_read() -> None:
    manifest, sealed = seal.seal(honest(), KEY)

    assert seal.unseal(sealed, manifest.key, KEY) == manifest
    seal.check(sealed, manifest.key, KEY)


def test_a_manifest_of_a_number_too_long_for_its_name_is_refused_before_it_is_stored() -> None:
    manifest, sealed = seal.seal(replace(honest(), version=Version(epoch=1, seq=10**12)), KEY)

    with pytest.raises(SnapshotRefused):
        seal.check(sealed, manifest.key, KEY)


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused_because_it(attack: str) -> None:
    """By who reads it, and for the same reason by who is about to store it."""
    manifest, sealed = seal.seal(ATTACKS[attack](), KEY)

    with pytest.raises(SnapshotRefused) as refusal:
        seal.unseal(sealed, manifest.key, KEY)
    with pytest.raises(SnapshotRefused) as before:
        seal.check(sealed, manifest.key, KEY)
    assert str(before.value) == str(refusal.value)


def stored(body: bytes) -> tuple[str, bytes]:
    sealed = seal.seal_plain(body, KEY)
    return f"{PREFIX}manifests/1-1-{seal.content_of(sealed)}.dm", sealed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 8 + b"junk",
        (MAX_MANIFEST_BYTES + 1).to_bytes(8, "little") + b"bomb",
        MAX_MANIFEST_BYTES.to_bytes(8, "little") + b"bomb of the largest legal size",
        (10).to_bytes(8, "little") + lz4.block.compress(b"0" * 1000, store_size=False),
    ],
)
def test_refused_because_it_does_not_unpack(body: bytes) -> None:
    key, sealed = stored(body)

    with pytest.raises(SnapshotRefused):
        seal.unseal(sealed, key, KEY)


@pytest.mark.parametrize("header", [None, [], {}, {"schema": 3}, {"schema": 2}, {"schema": 2, "packs": 1 << 62}])
def test_refused_because_its_header_is_none(header: Any) -> None:
    head = json.dumps(header).encode()

    with pytest.raises(SnapshotRefused):
        format2.decode(len(head).to_bytes(4, "little") + head)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_it_is_refused_by_name_or_read_as_another(data: st.DataObject) -> None:
    plain = bytearray(format2.encode(honest()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(plain) - 1))
        plain[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))

    try:
        read = format2.decode(bytes(plain))
    except SnapshotRefused:
        with pytest.raises(SnapshotRefused):
            format2.check(bytes(plain))
        return
    assert isinstance(read, Manifest)
    assert format2.check(bytes(plain)) == (read.prefix, read.version)


def test_every_flipped_bit_of_a_sealed_manifest_is_found() -> None:
    manifest, sealed = seal.seal(honest(), KEY)
    for at in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[at] ^= 1 << at % 8

        with pytest.raises(SnapshotRefused):
            seal.unseal(bytes(damaged), manifest.key, KEY)


def test_a_manifest_of_28000_files_loads_at_once() -> None:
    dirs = [Entry(b"d%04d" % n, "dir", 0o755) for n in range(280)]
    files = [
        Entry(b"d%04d/file%06d" % (n % 280, n), "file", 0o644, n, 100, SUM, (Extent(0, CHUNK, 0, 100),))
        for n in range(28_000)
    ]
    large = replace(honest(), entries=(honest().entries[0], *dirs, *files))
    writing_s, (manifest, sealed) = fastest(lambda: seal.seal(large, KEY))
    reading_s, read = fastest(lambda: seal.unseal(sealed, manifest.key, KEY))
    checking_s, _ = fastest(lambda: seal.check(sealed, manifest.key, KEY))

    assert read.files == 28_000
    assert reading_s < 3 * writing_s
    assert checking_s < reading_s / 2, "every snapshot waits for it"


def fastest(do: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of the fastest of three. What a whole test run has piled up is not looked through for garbage."""
    times = []
    gc.freeze()
    try:
        for _ in range(3):
            began = time.process_time()
            result = do()
            times.append(time.process_time() - began)
    finally:
        gc.unfreeze()
    return min(times), result


def test_a_hostile_manifest_changes_nothing(box: Box) -> None:
    manifest, sealed = seal.seal(ATTACKS["goes through a symlink"](), KEY)
    box.objects.put(manifest.key, sealed)
    box.copy.mkdir()
    (box.copy / "precious").write_bytes(b"still here")
    before = tree(box.copy)

    with pytest.raises(SnapshotRefused):
        box.restore(manifest.key)

    assert tree(box.copy) == before


def test_a_link_on_the_machine_leads_no_write_outside(box: Box) -> None:
    outside = box.base / "outside"
    outside.mkdir()
    (box.root / "d").mkdir()
    (box.root / "d/file").write_bytes(b"content")
    box.copy.mkdir()
    (box.copy / "d").symlink_to(outside)

    box.restore(box.take().manifest_key)

    assert tree(box.copy) == tree(box.root)
    assert list(outside.iterdir()) == []
