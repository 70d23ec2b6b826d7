"""Every parser that reads what a store or a stranger's machine gave us, as one function of bytes each."""

from __future__ import annotations

import array
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import lz4.block
from blake3 import blake3

from common.domain.snapshot import Version
from common.errors import SnapshotRefused
from common.snapshots import codec, floats, format1, format2, pack, seal
from common.snapshots.keys import keys_of
from common.snapshots.manifest import Chunk, Codec, Entry, Extent, Manifest, Pack

KEY = b"k" * 32
PREFIX = "acme.box/"
SALT = "5" * 32
CODECS: tuple[Codec, ...] = ("raw", "lz4", "zstd", "bits2", "bits4", "floats2", "floats4")
TEXT = b"".join(b"line %d of a workspace that is like another one\n" % n for n in range(200))
TEXT_NAME = blake3(TEXT).hexdigest()
CHANCE = random.Random(1)
WEIGHTS = array.array("f", (CHANCE.gauss(0, 0.02) for _ in range(3000))).tobytes()


@dataclass(frozen=True)
class Parser:
    """`parse` takes hostile bytes; `refusal` is the one error it may raise."""

    parse: Callable[[bytes], object]
    refusal: type[Exception]
    honest: tuple[bytes, ...]
    """What an honest engine writes: a search begins there."""

    def judge(self, hostile: bytes) -> None:
        """Raises what the parser should not have raised."""
        with suppress(self.refusal):
            self.parse(hostile)


def _manifest() -> Manifest:
    chunks = {f"{n:064x}": Chunk("d" * 64, n * 200, 116, 100, CODECS[n % 7] if n % 7 else "raw") for n in range(6)}
    files = [
        Entry(b"dir/file%d" % n, "file", 0o644, n, 100, "f" * 32, (Extent(0, f"{n:064x}", 0, 100),), uid=1, gid=2)
        for n in range(6)
    ]
    others = [
        Entry(b"", "dir", 0o755),
        Entry(b"dir", "dir", 0o755, xattrs=(("user.note", b"\0\xff"),)),
        Entry(b"dir/hard", "hardlink", target=b"dir/file1"),
        Entry(b"link", "symlink", 0o777, 0, target=b"../elsewhere"),
        Entry(b"torn\xff", "file", 0, -5, 50, "f" * 32, (), torn=True),
    ]
    return Manifest(
        PREFIX,
        Version(epoch=3, seq=7),
        "2026-01-02T03:04:00+00:00",
        tuple(sorted([*files, *others])),
        chunks,
        {"d" * 64: Pack(2000, "e" * 32, SALT)},
    )


def _document() -> bytes:
    return json.dumps(
        {
            "schema": 1,
            "prefix": PREFIX,
            "epoch": 3,
            "seq": 7,
            "taken_at": "2026-01-02T03:04:00+00:00",
            "packs": [["d" * 64, 100, "e" * 32]],
            "chunks": [["c" * 64, 0, 0, 100, 100, "raw"]],
            "entries": [
                ["", "dir", 0o755, 0],
                ["a", "file", 0o644, 0, 100, "f" * 32, [[0, 0, 0, 100]], 0],
                ["d", "dir", 0o755, 0],
                ["d/h", "hardlink", "a"],
                ["l", "symlink", 0o777, 0, "/etc"],
            ],
        }
    ).encode()


def _body(plain: bytes) -> bytes:
    return len(plain).to_bytes(8, "little") + lz4.block.compress(plain, store_size=False)


def _unseal(sealed: bytes) -> Manifest:
    """Under the name that its content gives it, so that it is judged by what it holds."""
    return seal.unseal(sealed, f"{PREFIX}manifests/3-7-{seal.content_of(sealed)}.dm", KEY)


def _unseal_body(body: bytes) -> Manifest:
    return _unseal(seal.seal_plain(body, KEY))


def _unseal_format1(body: bytes) -> Manifest:
    return _unseal(format1.MAGIC + format1.mac_of(body, KEY) + body)


def _unpack(name: Codec, size: int) -> Callable[[bytes], object]:
    return lambda frame: codec.decode(name, frame, size)


def _unpack_floats(item_bytes: int) -> Callable[[bytes], object]:
    """The compiled half and the other: they take the same, and make the same of it."""

    def both(frame: bytes) -> None:
        found: list[bytes | None] = []
        for decode in (floats.decode, floats.decode_slowly):
            try:
                found.append(decode(frame, item_bytes, len(WEIGHTS)))
            except ValueError:
                found.append(None)
        assert found[0] == found[1]

    return both


def _open_chunk(hostile: bytes) -> object:
    """A byte chooses the codec, two the size that a manifest claims; the rest is what the pack holds.

    The pack is of format 1, so that no tag stands before the frame.
    """
    kind, claimed, stored = CODECS[hostile[:1].ljust(1)[0] % len(CODECS)], hostile[1:3], hostile[3:]
    chunk = Chunk("d" * 64, 0, len(stored), int.from_bytes(claimed, "little"), kind)
    return pack.open_chunk(TEXT_NAME, chunk, Pack(len(stored), "e" * 32, ""), stored, keys_of(KEY))


def _sealed_chunk() -> bytes:
    return bytes([CODECS.index("lz4")]) + len(TEXT).to_bytes(2, "little") + bytes(codec.ENCODERS["lz4"](TEXT))


def parsers() -> dict[str, Parser]:
    plain = format2.encode(_manifest())
    found = {
        "manifest": Parser(format2.decode, SnapshotRefused, (plain,)),
        "manifest_sealed": Parser(_unseal, SnapshotRefused, (seal.seal(_manifest(), KEY)[1],)),
        "manifest_authentic": Parser(
            lambda body: _unseal(seal.seal_plain(body, KEY)), SnapshotRefused, (_body(plain),)
        ),
        "manifest_format1": Parser(lambda text: _unseal_format1(_body(text)), SnapshotRefused, (_document(),)),
        "manifest_format1_body": Parser(_unseal_format1, SnapshotRefused, (_body(_document()),)),
        "pack": Parser(_open_chunk, ValueError, (_sealed_chunk(),)),
    }
    for name, encoder in codec.ENCODERS.items():
        if name not in ("floats2", "floats4"):
            found[f"frame_{name}"] = Parser(_unpack(name, len(TEXT)), ValueError, (bytes(encoder(TEXT)),))
    for item_bytes in (2, 4):
        honest = bytes(floats.encode(WEIGHTS, item_bytes) or b"")
        found[f"frame_floats{item_bytes}"] = Parser(_unpack_floats(item_bytes), ValueError, (honest,))
    return found
