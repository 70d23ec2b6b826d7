"""The codecs alone, without the sample that chooses one: GB of plain bytes per second on as many processes as there are
cores, beside memcpy.

`memcpy` copies what lies in no cache, as what comes from a disk or a line does; `memcpy_one_core` the same on one;
`memcpy_in_cache` a chunk again and again, which no data that is read once can reach.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from common.snapshots.codec import ENCODERS, decode
from common.snapshots.manifest import Codec

CHUNK_BYTES = 1 << 20
CHUNKS = 16
SECONDS = 0.5
MEMORY_BYTES = 256 << 20
BESIDE: tuple[tuple[str, str, Codec], ...] = (
    ("exponents", "floats", "floats2"),
    ("bitshuffle_lz4", "floats", "bits2"),
    ("lz4", "text", "lz4"),
    ("zstd", "text", "zstd"),
)
"""(name, what of, codec)"""


def measure(floats: Path, code: Path) -> dict[str, float]:
    content = floats.read_bytes()[: CHUNKS * CHUNK_BYTES]
    text = b"".join(path.read_bytes() for path in sorted(code.rglob("*.py"))[:3000])[: CHUNKS * CHUNK_BYTES]
    found = {"memcpy": _together(_copies_in_memory), "memcpy_one_core": _copies_in_memory()}
    found["memcpy_in_cache"] = _together(_copies, content)
    for name, plain, codec in BESIDE:
        of = content if plain == "floats" else text
        found[f"{name}_compress"] = _together(_encodes, of, codec)
        found[f"{name}_decompress"] = _together(_decodes, of, codec)
    return {name: round(rate, 2) for name, rate in found.items()}


def _together(work: Callable[..., float], *args: object) -> float:
    """The sum over all cores."""
    cores = len(os.sched_getaffinity(0))
    with get_context("fork").Pool(cores) as pool:
        return sum(job.get() for job in [pool.apply_async(work, args) for _ in range(cores)])


def _copies_in_memory() -> float:
    here, there = bytearray(os.urandom(CHUNK_BYTES) * (MEMORY_BYTES // CHUNK_BYTES)), bytearray(MEMORY_BYTES)
    source, target, done, began = memoryview(here), memoryview(there), 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        target[:] = source
        done += MEMORY_BYTES
    return done / (time.perf_counter() - began) / 1e9


def _copies(content: bytes) -> float:
    return _rate(content, lambda chunk: bytearray(chunk))


def _encodes(content: bytes, codec: Codec) -> float:
    return _rate(content, ENCODERS[codec])


def _decodes(content: bytes, codec: Codec) -> float:
    packed = {chunk: bytes(ENCODERS[codec](chunk)) for chunk in _chunks(content)}
    return _rate(content, lambda chunk: decode(codec, packed[chunk], len(chunk)))


def _rate(content: bytes, work: Callable[[bytes], object]) -> float:
    chunks, done, began = _chunks(content), 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        for chunk in chunks:
            work(chunk)
        done += len(content)
    return done / (time.perf_counter() - began) / 1e9


def _chunks(content: bytes) -> list[bytes]:
    return [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
