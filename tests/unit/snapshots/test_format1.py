"""Snapshots of format 1 still restore; a manifest of it may be authentic and still an attack, which is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import lz4.block
import pytest
from blake3 import blake3

from common.errors import SnapshotRefused
from common.snapshots import format1, seal, state
from common.snapshots.chunk import bytes_sum
from common.snapshots.limits import MAX_MANIFEST_BYTES
from tests.snapshots_fixtures import KEY, PREFIX, Box, tree

CHUNK, PACK, MD5, SUM = "c" * 64, "d" * 64, "e" * 32, "f" * 32


def honest() -> dict[str, Any]:
    return {
        "schema": 1,
        "prefix": PREFIX,
        "epoch": 1,
        "seq": 1,
        "taken_at": "2026-01-02T03:04:00+00:00",
        "packs": [[PACK, 100, MD5]],
        "chunks": [[CHUNK, 0, 0, 100, 100, "raw"]],
        "entries": [
            ["", "dir", 0o755, 0],
            ["a", "file", 0o644, 0, 100, SUM, [[0, 0, 0, 100]], 0],
            ["d", "dir", 0o755, 0],
            ["l", "symlink", 0o777, 0, "/etc"],
            ["d/h", "hardlink", "a"],
        ],
    }


def stored(document: Any, key: bytes = KEY) -> tuple[str, bytes]:
    plain = json.dumps(document).encode()
    return stored_body(len(plain).to_bytes(8, "little") + lz4.block.compress(plain, store_size=False), key)


def stored_body(body: bytes, key: bytes = KEY) -> tuple[str, bytes]:
    sealed = format1.MAGIC + format1.mac_of(body, key) + body
    return f"{PREFIX}manifests/1-1-{seal.content_of(sealed)}.dm", sealed


Attack = Callable[[dict[str, Any]], Any]


def entry(*row: Any) -> Attack:
    return lambda manifest: manifest["entries"].append(list(row))


def put(place: str, row: int, column: int, value: Any) -> Attack:
    return lambda manifest: manifest[place][row].__setitem__(column, value)


ATTACKS: dict[str, Attack] = {
    "climbs": entry("../evil", "dir", 0o755, 0),
    "climbs inside": entry("d/../../evil", "dir", 0o755, 0),
    "is absolute": entry("/etc/cron.d/evil", "file", 0o644, 0, 0, SUM, [], 0),
    "is a dot": entry(".", "dir", 0o755, 0),
    "has an empty step": entry("d//x", "dir", 0o755, 0),
    "ends in a slash": entry("d/", "dir", 0o755, 0),
    "has a NUL": entry("a\0b", "dir", 0o755, 0),
    "has a name of 256 bytes": entry("x" * 256, "dir", 0o755, 0),
    "has a surrogate of no byte": entry("\ud800", "dir", 0o755, 0),
    "goes through a symlink": entry("l/passwd", "file", 0o644, 0, 0, SUM, [], 0),
    "goes through a file": entry("a/x", "dir", 0o755, 0),
    "goes through nothing": entry("no/x", "dir", 0o755, 0),
    "stands twice": entry("a", "symlink", 0o777, 0, "/etc"),
    "is a second root": entry("", "dir", 0o755, 0),
    "is a device": entry("dev", "device", 0o644, 0),
    "links outside": entry("h", "hardlink", "../../etc/passwd"),
    "links to a symlink": entry("h", "hardlink", "l"),
    "links to a directory": entry("h", "hardlink", "d"),
    "links to itself": entry("h", "hardlink", "h"),
    "is a symlink to nothing": entry("s", "symlink", 0o777, 0, ""),
    "has an absurd size": put("entries", 1, 4, 1 << 60),
    "has a negative size": put("entries", 1, 4, -1),
    "has a size that is no number": put("entries", 1, 4, "100"),
    "has a fractional size": put("entries", 1, 4, 1.5),
    "has a boolean size": put("entries", 1, 4, True),
    "has an absurd mode": put("entries", 1, 2, 0o100644),
    "has an absurd time": put("entries", 1, 3, 1 << 70),
    "reads past its chunk": put("entries", 1, 6, [[0, 0, 1, 100]]),
    "writes past its size": put("entries", 1, 6, [[1, 0, 0, 100]]),
    "writes backwards": put("entries", 1, 6, [[50, 0, 0, 10], [0, 0, 0, 10]]),
    "writes before its start": put("entries", 1, 6, [[-1, 0, 0, 10]]),
    "names no chunk": put("entries", 1, 6, [[0, 1, 0, 10]]),
    "names a chunk from the end": put("entries", 1, 6, [[0, -1, 0, 10]]),
    "has a row too short": lambda manifest: manifest["entries"].append(["x"]),
    "has a row that is none": lambda manifest: manifest["entries"].append(7),
    "lies about a chunk's length": put("chunks", 0, 4, 50),
    "holds a bomb": put("chunks", 0, 4, 1 << 40),
    "reads past its pack": put("chunks", 0, 2, 1),
    "has an unknown codec": put("chunks", 0, 5, "zip"),
    "has a chunk of no name": put("chunks", 0, 0, "../../../etc"),
    "has a pack of no name": put("packs", 0, 0, "../manifest"),
    "has an absurd pack": put("packs", 0, 1, 1 << 40),
    "has two packs of a name": lambda manifest: manifest["packs"].append([PACK, 1, MD5]),
    "has two chunks of a name": lambda manifest: manifest["chunks"].append([CHUNK, 0, 0, 1, 1, "raw"]),
    "has a pack without a chunk": lambda manifest: manifest["packs"].append(["a" * 64, 1, MD5]),
    "has no entries": lambda manifest: manifest.update(entries=[]),
    "has no chunks": lambda manifest: manifest.pop("chunks"),
    "is of another schema": lambda manifest: manifest.update(schema=99),
    "is of another version than its name": lambda manifest: manifest.update(seq=2),
    "has a prefix that climbs": lambda manifest: manifest.update(prefix="../"),
}


def test_the_honest_one_is_taken() -> None:
    key, sealed = stored(honest())

    assert seal.unseal(sealed, key, KEY).files == 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused_because_it(attack: str) -> None:
    document = copy.deepcopy(honest())
    ATTACKS[attack](document)
    key, sealed = stored(document)

    with pytest.raises(SnapshotRefused):
        seal.unseal(sealed, key, KEY)


@pytest.mark.parametrize("document", [None, [], 3, "x", {"schema": 1}])
def test_refused_because_it_is_no_manifest(document: Any) -> None:
    key, sealed = stored(document)

    with pytest.raises(SnapshotRefused):
        seal.unseal(sealed, key, KEY)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 8 + b"junk",
        (MAX_MANIFEST_BYTES + 1).to_bytes(8, "little") + b"bomb",
        (10).to_bytes(8, "little") + lz4.block.compress(b"0" * 1000, store_size=False),
        (100_000).to_bytes(8, "little") + lz4.block.compress(b"[" * 100_000, store_size=False),
        (100_000).to_bytes(8, "little") + lz4.block.compress(b"9" * 100_000, store_size=False),
    ],
)
def test_refused_because_it_does_not_decode(body: bytes) -> None:
    key, sealed = stored_body(body)

    with pytest.raises(SnapshotRefused):
        seal.unseal(sealed, key, KEY)


def test_a_hostile_manifest_changes_nothing(box: Box) -> None:
    document = honest()
    ATTACKS["goes through a symlink"](document)
    key, sealed = stored(document)
    box.objects.put(key, sealed)
    box.copy.mkdir()
    (box.copy / "precious").write_bytes(b"still here")
    before = tree(box.copy)

    with pytest.raises(SnapshotRefused):
        box.restore(key)

    assert tree(box.copy) == before


def test_a_snapshot_of_format_1_restores_and_its_chunks_are_used_by_the_next(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "TICK_NS", -(10**10))  # what was written just now counts as settled
    words, noise = b"words " * 1000, os.urandom(5000)
    packed = lz4.block.compress(words, store_size=False) + noise
    names = [blake3(words).hexdigest(), blake3(noise).hexdigest()]
    pack = blake3(packed).hexdigest()
    split = len(packed) - len(noise)
    document = honest() | {
        "packs": [[pack, len(packed), hashlib.md5(packed).hexdigest()]],
        "chunks": [[names[0], 0, 0, split, len(words), "lz4"], [names[1], 0, split, len(noise), len(noise), "raw"]],
        "entries": [
            ["", "dir", 0o755, 0],
            ["d", "dir", 0o700, 5],
            ["d/words", "file", 0o644, 1, len(words), bytes_sum(words), [[0, 0, 0, len(words)]], 0],
            ["noise", "file", 0o600, 2, len(noise), bytes_sum(noise), [[0, 1, 0, len(noise)]], 0],
            ["other", "hardlink", "noise"],
        ],
    }
    key, sealed = stored(document)
    box.objects.put(key, sealed)
    box.objects.put(f"{PREFIX}packs/{pack}", packed)

    restored = box.restore(key)
    next = box.take(2, restored.manifest, root=box.copy, state_dir=box.base / "other state")
    again = box.restore(next.manifest_key, root=box.base / "third", state_dir=box.base / "third state")

    assert (box.copy / "d/words").read_bytes() == words
    assert (box.copy / "other").read_bytes() == noise
    assert box.verify(next.manifest_key).ok
    assert pack in again.manifest.packs
    assert tree(box.base / "third") == tree(box.copy)
