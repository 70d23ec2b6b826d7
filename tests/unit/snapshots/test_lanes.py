"""MD5 of several at once is MD5 of each."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.snapshots import lanes
from common.snapshots.lanes import LANES, md5_of

BYTES = os.urandom(1 << 20)


def alone(content: memoryview) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@given(sizes=st.lists(st.integers(0, 300) | st.integers(0, 70_000), max_size=2 * LANES + 1))
def test_of_any_number_and_any_lengths(sizes: list[int]) -> None:
    contents = [memoryview(bytearray(BYTES[size : 2 * size])) for size in sizes]

    assert md5_of(contents) == [alone(content) for content in contents]


@pytest.mark.parametrize("size", [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1 << 20])
def test_at_the_ends_of_blocks(size: int) -> None:
    content = memoryview(bytearray(BYTES[:size]))

    assert md5_of([content] * 3) == [alone(content)] * 3


def test_nothing_of_it_is_written() -> None:
    content = bytearray(BYTES[:1000])

    md5_of([memoryview(content)])

    assert content == BYTES[:1000]


def test_without_the_compiled_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "library", lambda: None)
    contents = [memoryview(bytearray(BYTES[:size])) for size in (0, 100, 5_000)]

    assert md5_of(contents) == [alone(content) for content in contents]
