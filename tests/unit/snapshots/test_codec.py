"""Chunks end where their content says, at any number of bytes: they are made smaller all the same."""

from __future__ import annotations

import array
import random

import pytest

from common.snapshots import floats
from common.snapshots.codec import decode, encode

CHANCE = random.Random(1)
FLOATS = array.array("f", (CHANCE.gauss(0, 0.02) for _ in range(300_000))).tobytes()
TEXT = b"".join(b"line %d of a program\n" % CHANCE.randrange(10_000) for _ in range(50_000))


@pytest.mark.parametrize("size", [8_192, 65_536, 66_001, 70_000, 100_003, 131_070, 200_001, 262_145, 1_000_003])
@pytest.mark.parametrize("start", [0, 1, 12_345])
def test_floats_shrink_whatever_the_length(size: int, start: int) -> None:
    plain = FLOATS[start : start + size]

    codec, stored = encode(plain, tightly=False)

    assert codec == "floats4"
    assert len(stored) < 0.88 * size
    assert decode(codec, bytes(stored), size) == plain


def test_an_engine_that_is_not_compiled_shrinks_floats_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "library", lambda: None)
    plain = FLOATS[1:70_000]

    codec, stored = encode(plain, tightly=False)

    assert codec in ("bits2", "bits4")
    assert len(stored) < 0.95 * len(plain)
    assert decode(codec, bytes(stored), len(plain)) == plain


def test_small_integers_are_no_floats() -> None:
    plain = array.array("i", (CHANCE.randrange(50_000) for _ in range(100_000))).tobytes()

    codec, stored = encode(plain, tightly=False)

    assert codec == "bits4"
    assert len(stored) < 0.6 * len(plain)


@pytest.mark.parametrize("size", [100, 5_000, 66_001, 1_000_003])
@pytest.mark.parametrize(("tightly", "expected"), [(False, "lz4"), (True, "zstd")])
def test_text_shrinks_whatever_the_length(size: int, tightly: bool, expected: str) -> None:
    plain = TEXT[:size]

    codec, stored = encode(plain, tightly=tightly)

    assert codec == expected
    assert decode(codec, bytes(stored), size) == plain
