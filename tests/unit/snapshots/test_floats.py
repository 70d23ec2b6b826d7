"""Exponents by themselves: what comes back is what went in, and whatever does not come from us is refused."""

from __future__ import annotations

import array
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.snapshots import floats
from common.snapshots.compiled import library
from common.snapshots.limits import MAX_CHUNK_BYTES

CHANCE = random.Random(2)
SINGLES = array.array("f", (CHANCE.gauss(0, 0.02) for _ in range(40_000))).tobytes()
SHORTS = bytes(byte for place, byte in enumerate(SINGLES) if place % 4 >= 2)
OF = {2: SHORTS, 4: SINGLES}
DECODERS: dict[str, Callable[[bytes, int, int], bytes]] = {"compiled": floats.decode, "slow": floats.decode_slowly}


def encoded(plain: bytes, item_bytes: int) -> bytes:
    stored = floats.encode(plain, item_bytes)
    assert stored is not None
    return bytes(stored)


def decoded(decode: Callable[[bytes, int, int], bytes], stored: bytes, item_bytes: int, size: int) -> bytes | None:
    try:
        return decode(stored, item_bytes, size)
    except ValueError:
        return None


def test_the_engine_is_compiled_here() -> None:
    assert library() is not None


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(("item_bytes", "share"), [(2, 0.7), (4, 0.85)])
@given(start=st.integers(0, 9), size=st.integers(4_000, 70_000))
def test_floats_shrink_and_come_back_wherever_a_chunk_is_cut(
    decode: str, item_bytes: int, share: float, start: int, size: int
) -> None:
    plain = OF[item_bytes][start : start + size]

    stored = encoded(plain, item_bytes)

    assert len(stored) < share * len(plain) + floats.HEAD_BYTES
    assert DECODERS[decode](stored, item_bytes, len(plain)) == plain


@pytest.mark.parametrize("item_bytes", [2, 4])
@given(values=st.lists(st.sampled_from(range(3)), min_size=1, max_size=4), size=st.integers(0, 2_000), data=st.data())
def test_few_values_come_back_whatever_there_is_of_them(
    item_bytes: int, values: list[int], size: int, data: st.DataObject
) -> None:
    chance = random.Random(data.draw(st.integers(0, 1 << 32)))
    plain = bytes(chance.choice(values) if place % item_bytes == 1 else chance.randrange(256) for place in range(size))

    stored = floats.encode(plain, item_bytes)

    if stored is not None:
        assert len(stored) < size
        assert all(decode(bytes(stored), item_bytes, size) == plain for decode in DECODERS.values())


@pytest.mark.parametrize("item_bytes", [2, 4])
def test_one_exponent_alone_has_a_code_too(item_bytes: int) -> None:
    plain = bytes(b for _ in range(5_000) for b in (*CHANCE.randbytes(item_bytes - 1), 7))

    stored = encoded(plain, item_bytes)

    assert all(decode(stored, item_bytes, len(plain)) == plain for decode in DECODERS.values())


def test_exponents_as_rare_as_can_be_have_codes_that_fit_a_table() -> None:
    """Fibonacci's numbers make the longest codes that Huffman knows."""
    counts = [1, 1]
    while sum(counts) < 90_000:
        counts.append(counts[-1] + counts[-2])
    exponents = [symbol for symbol, count in enumerate(counts) for _ in range(count)]
    CHANCE.shuffle(exponents)
    plain = b"".join((exponent << 7).to_bytes(2, "little") for exponent in exponents)

    stored = encoded(plain, 2)

    assert all(decode(stored, 2, len(plain)) == plain for decode in DECODERS.values())


@pytest.mark.parametrize("plain", [b"", b"x", SINGLES[:100], CHANCE.randbytes(60_000)])
def test_what_gains_nothing_is_left_as_it_is(plain: bytes) -> None:
    assert floats.encode(plain, 2) is None
    assert floats.encode(plain, 4) is None


def test_the_largest_chunk_and_no_larger_one() -> None:
    plain = (SINGLES * 27)[:MAX_CHUNK_BYTES]

    assert floats.decode(encoded(plain, 4), 4, len(plain)) == plain
    assert floats.encode(plain + b"1234", 4) is None


@pytest.mark.parametrize("decode", DECODERS)
def test_what_is_longer_than_its_streams_is_refused(decode: str) -> None:
    stored = encoded(SINGLES[:5_000], 4)

    assert decoded(DECODERS[decode], stored, 4, 5_000) == SINGLES[:5_000]
    assert decoded(DECODERS[decode], stored + b"\0", 4, 5_000) is None


def test_a_process_that_is_forked_off_works_in_memory_of_its_own() -> None:
    stored = floats.encode(SHORTS, 2)
    assert stored is not None
    before = bytes(stored)

    child = os.fork()
    if not child:
        floats.encode(SINGLES, 4)
        os._exit(0)
    os.waitpid(child, 0)

    assert bytes(stored) == before


def test_threads_do_not_meet() -> None:
    frames = [(encoded(OF[item][:size], item), item, size) for item in (2, 4) for size in (60_000, 70_000)]

    def decodes(number: int) -> bool:
        stored, item_bytes, size = frames[number % len(frames)]
        return floats.decode(stored, item_bytes, size) == OF[item_bytes][:size]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(decodes, range(2000)))


@given(
    item_bytes=st.sampled_from([2, 4]),
    size=st.sampled_from([3_000, 66_000]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
    of_the_head=st.booleans(),
    keeps=st.integers(0, 300),
    claims=st.integers(-3, 3),
)
def test_both_halves_take_the_same_and_make_the_same_of_it(
    item_bytes: int, size: int, flips: list[tuple[float, int]], of_the_head: bool, keeps: int, claims: int
) -> None:
    hostile = bytearray(encoded(OF[item_bytes][:size], item_bytes))
    for place, bit in flips:
        hostile[int(place * (140 if of_the_head else len(hostile)))] ^= 1 << bit
    if keeps < 150:
        del hostile[keeps if of_the_head else -keeps - 1 :]

    found = [decoded(decode, bytes(hostile), item_bytes, size + claims) for decode in DECODERS.values()]

    assert found[0] == found[1]
