"""Floats by their exponents: of a model's weights two thirds (bfloat16) to five sixths (single) are left.

What is stored is told in `floats.c`, which does it at 2 to 3 GB/s and back at 4 to 6 (one core, Zen 4). Without it
nothing is encoded so, and what others encoded is decoded here: the same bytes, some hundred times slower.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any, NamedTuple

from common.snapshots.compiled import library
from common.snapshots.limits import MAX_CHUNK_BYTES

SYMBOLS, CODE_MOST, STREAMS, GUARD_BYTES = 256, 10, 8, 8
LENGTHS_BYTES = SYMBOLS // 2
SIZES_BYTES = 4 * STREAMS
HEAD_BYTES = LENGTHS_BYTES + 1 + SIZES_BYTES + GUARD_BYTES
TABLE = 1 << CODE_MOST

Plain = bytes | bytearray | memoryview


def encode(plain: Plain, item_bytes: int) -> memoryview | None:
    """The floats of 2 or 4 bytes each, smaller; good until the next call. None where nothing is gained, or the engine
    was not compiled."""
    compiled = library()
    if compiled is None or len(plain) > MAX_CHUNK_BYTES:
        return None
    tools = _tools()
    size = tools.encode(_address(plain), len(plain), item_bytes, tools.room_at, tools.scratch_at)
    return tools.room[:size] if size else None


def decode(stored: Plain, item_bytes: int, plain_bytes: int) -> bytes:
    """What was encoded; raises ValueError."""
    if library() is None or plain_bytes > MAX_CHUNK_BYTES:
        return decode_slowly(bytes(stored), item_bytes, plain_bytes)
    tools = _tools()
    plain = tools.new_bytes(None, plain_bytes)  # nobody else has it yet: it is filled before it is given away
    if not tools.decode(_address(stored), len(stored), item_bytes, plain, plain_bytes, tools.scratch_at):
        raise ValueError("no floats")
    return plain


class _Tools(NamedTuple):
    """Of the compiled half, made once for each process; its threads take turns (`library`)."""

    encode: Callable[..., int]
    decode: Callable[..., int]
    new_bytes: Callable[[None, int], bytes]
    """Not cleared first, which would take a quarter of the decoding."""
    room: memoryview
    scratch: memoryview
    room_at: int
    scratch_at: int


@cache
def _tools() -> _Tools:
    compiled = library()
    assert compiled is not None
    sized, addressed, item = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    compiled.floats_encode.argtypes = [addressed, sized, item, addressed, addressed]
    compiled.floats_encode.restype = sized
    compiled.floats_decode.argtypes = [addressed, sized, item, addressed, sized, addressed]
    room, scratch = _memory(MAX_CHUNK_BYTES + HEAD_BYTES + GUARD_BYTES), _memory(MAX_CHUNK_BYTES)
    new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, addressed, ctypes.c_ssize_t)(
        ("PyBytes_FromStringAndSize", ctypes.pythonapi)
    )
    return _Tools(
        compiled.floats_encode, compiled.floats_decode, new_bytes, room, scratch, _address(room), _address(scratch)
    )


def _memory(size: int) -> memoryview:
    """As much as is written to; a process that is forked off has its own."""
    return memoryview(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS))


def _address(plain: Plain) -> Any:
    """What a pointer is made of; the memory is the caller's."""
    if isinstance(plain, memoryview) and plain.readonly:
        plain = bytes(plain)
    return plain if isinstance(plain, bytes) else ctypes.addressof(ctypes.c_char.from_buffer(plain))


def decode_slowly(stored: bytes, item_bytes: int, plain_bytes: int) -> bytes:
    """As `decode`, without the compiled half."""
    if len(stored) < HEAD_BYTES or not stored[LENGTHS_BYTES] < min(item_bytes, plain_bytes + 1):
        raise ValueError("no floats")
    before = stored[LENGTHS_BYTES]
    count, after = divmod(plain_bytes - before, item_bytes)
    start = LENGTHS_BYTES + 1
    planes = start + before
    low = planes + count * (item_bytes - 1)
    sizes = low + after
    end = len(stored) - GUARD_BYTES
    if sizes + SIZES_BYTES > end:
        raise ValueError("no floats")
    exponents = b"".join(_streams(stored, sizes, end, count))
    plain = bytearray(count * item_bytes)
    for place in range(item_bytes):  # the last byte of an item is the first of the planes
        plane = exponents if place == item_bytes - 1 else stored[low - (place + 1) * count : low - place * count]
        plain[place::item_bytes] = plane
    return stored[start:planes] + _turned_right(plain, item_bytes) + stored[low:sizes]


def _streams(stored: bytes, sizes: int, end: int, count: int) -> Iterator[bytes]:
    table, at = _table(stored[:LENGTHS_BYTES]), sizes + SIZES_BYTES
    for stream in range(STREAMS):
        size = int.from_bytes(stored[sizes + 4 * stream :][:4], "little")
        symbols = count * (stream + 1) // STREAMS - count * stream // STREAMS
        if at + size > end:
            raise ValueError("a stream is longer than what there is")
        yield _symbols(stored[at : at + size], symbols, table)
        at += size
    if at != end:
        raise ValueError("there is more than the streams")


def _table(packed: bytes) -> list[tuple[int, int]]:
    """(symbol, length of its code) for each of the next CODE_MOST bits."""
    lengths = [length for both in packed for length in (both & 15, both >> 4)]
    if max(lengths) > CODE_MOST or sum(TABLE >> length for length in lengths if length) != TABLE:
        raise ValueError("the lengths are not those of a code")
    table, code = [(0, 0)] * TABLE, 0
    for length in range(1, CODE_MOST + 1):
        code <<= 1
        for symbol in (symbol for symbol, its in enumerate(lengths) if its == length):
            turned = int(f"{code:0{length}b}"[::-1], 2)
            for at in range(turned, TABLE, 1 << length):
                table[at] = (symbol, length)
            code += 1
    return table


def _symbols(stream: bytes, count: int, table: list[tuple[int, int]]) -> bytes:
    found, held, bits, at = bytearray(count), 0, 0, 0
    for number in range(count):
        if held < CODE_MOST:
            word = stream[at : at + 6]
            bits |= int.from_bytes(word, "little") << held
            held, at = held + 48, at + 6  # zeros after the end
        symbol, length = table[bits & (TABLE - 1)]
        found[number] = symbol
        bits >>= length
        held -= length
    if -(-(8 * at - held) // 8) != len(stream):
        raise ValueError("a stream has another length")
    return bytes(found)


def _turned_right(plain: bytearray, item_bytes: int) -> bytes:
    """Each item by one bit: all of them as one number."""
    count = len(plain) // item_bytes
    lowest = int.from_bytes((1).to_bytes(item_bytes, "little") * count, "little")
    number = int.from_bytes(plain, "little")
    turned = (number & lowest) << (8 * item_bytes - 1) | (number & ~lowest) >> 1
    return turned.to_bytes(len(plain), "little")
