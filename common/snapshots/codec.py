"""How a chunk's bytes are made smaller. A sample decides what is worth trying; what does not pay is stored as it is.

The libraries are loaded in the process that needs them. Figures: one core (Zen 4), chunks of 1 MiB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

import lz4.block

from common.snapshots import floats
from common.snapshots.manifest import Codec

SAMPLE_LEAST_BYTES, SAMPLE_MOST_BYTES, SAMPLE_SHARE = 4 << 10, 16 << 10, 16
"""Tried first, from the middle of the chunk: that part of it, about 30 us at most."""
TEXT_BELOW = 0.5
"""A sample that LZ4 shrinks so far is text: floats are not tried."""
SAMPLE_PAYS_BELOW = 0.95
PAYS_BELOW = 0.97
"""A chunk that does not shrink at least so far is stored as it is."""
ZSTD_LEVEL = 1
BLOSC_LEVEL = 5
BLOSC_HEADER_BYTES = 16
EVEN_BYTES = 4096
"""Bit-shuffling leaves a chunk as it is that does not end where its blocks end: zeros are added up to there, and taken
away again. They cost nothing."""

FLOATS: tuple[Codec, ...] = ("bits2", "bits4", "floats2", "floats4")
"""Small integers too, which bits are for."""

Plain = bytes | bytearray | memoryview


def encode(plain: Plain, *, tightly: bool) -> tuple[Codec, Plain]:
    """The codec and the bytes to store. `tightly`: Zstandard in place of LZ4, for a line that is slower than it.

    For source code Zstandard does 0.53 GB/s and a quarter of the bytes, LZ4 0.68 GB/s and 0.37; for floats neither
    finds anything. Their exponents do (bf16: 0.67 of the bytes, at 2 GB/s), or bit-shuffling (0.76): that is also for
    small integers, and for an engine that was not compiled.
    """
    share = len(plain) // SAMPLE_SHARE // EVEN_BYTES * EVEN_BYTES
    size = min(len(plain), max(SAMPLE_LEAST_BYTES, min(SAMPLE_MOST_BYTES, share)))
    middle = (len(plain) - size) // 2
    codec = _best(plain[middle : middle + size])
    if codec == "raw":
        return codec, plain
    if codec == "lz4" and tightly:
        codec = "zstd"
    stored = ENCODERS[codec](plain)
    return (codec, stored) if len(stored) < PAYS_BELOW * len(plain) else ("raw", plain)


def _best(sample: Plain) -> Codec:
    sizes: dict[Codec, int] = {"lz4": len(_lz4(sample))}
    if sizes["lz4"] > TEXT_BELOW * len(sample):
        sizes |= {codec: len(ENCODERS[codec](sample)) for codec in FLOATS}
    codec = min(sizes, key=sizes.__getitem__)
    return codec if sizes[codec] < SAMPLE_PAYS_BELOW * len(sample) else "raw"


def decode(codec: Codec, stored: Plain, plain_bytes: int) -> Plain:
    """The plain bytes; raises ValueError. Never allocates more than `plain_bytes`, whatever `stored` claims."""
    match codec:
        case "raw":
            plain: Plain = stored
        case "lz4":
            plain = _unlz4(stored, plain_bytes)
        case "zstd":
            plain = _unzstd(stored, plain_bytes)
        case "bits2" | "bits4":
            plain = _unblosc(stored, plain_bytes)
        case "floats2" | "floats4":
            plain = floats.decode(stored, int(codec[-1]), plain_bytes)
    if len(plain) != plain_bytes:
        raise ValueError(f"{len(plain)} bytes, not {plain_bytes}")
    return plain


def _lz4(plain: Plain) -> bytes:
    return lz4.block.compress(plain, store_size=False)  # type: ignore[no-any-return]


def _unlz4(stored: Plain, plain_bytes: int) -> bytes:
    try:
        return lz4.block.decompress(stored, uncompressed_size=plain_bytes)  # type: ignore[no-any-return]
    except lz4.block.LZ4BlockError as error:
        raise ValueError(str(error)) from None


def _zstd(plain: Plain) -> bytes:
    return _zstandard()[0](plain)


def _unzstd(stored: Plain, plain_bytes: int) -> bytes:
    """Exactly one frame that names its size: the library would allocate whatever a frame claims."""
    import zstandard

    try:
        if zstandard.frame_content_size(stored) != plain_bytes:
            raise ValueError("the frame is of another size")
        return _zstandard()[1](stored, max_output_size=plain_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _floats2(plain: Plain) -> Plain:
    return floats.encode(plain, 2) or plain


def _floats4(plain: Plain) -> Plain:
    return floats.encode(plain, 4) or plain


def _bits2(plain: Plain) -> bytes:
    return _bits(plain, 2)


def _bits4(plain: Plain) -> bytes:
    return _bits(plain, 4)


def _bits(plain: Plain, item_bytes: int) -> bytes:
    blosc = _blosc()
    if lacks := _even(len(plain)) - len(plain):
        plain = b"".join((plain, bytes(lacks)))
    return blosc.compress(plain, item_bytes, BLOSC_LEVEL, blosc.BLOSC_BITSHUFFLE, "lz4")  # type: ignore[no-any-return]


def _unblosc(stored: Plain, plain_bytes: int) -> Plain:
    """The header's own words about size are compared first: the library allocates what they claim."""
    blosc = _blosc()
    if len(stored) < BLOSC_HEADER_BYTES:
        raise ValueError("no whole header")
    try:
        claimed, length, _ = blosc.get_cbuffer_sizes(bytes(stored[:BLOSC_HEADER_BYTES]))
        if claimed not in (plain_bytes, _even(plain_bytes)) or length != len(stored):
            raise ValueError("the frame is of another size")
        return memoryview(blosc.decompress(stored, False))[:plain_bytes]
    except (blosc.error, TypeError) as error:
        raise ValueError(str(error)) from None


def _even(size: int) -> int:
    return -(-size // EVEN_BYTES) * EVEN_BYTES


def load() -> None:
    """Everything but Zstandard, now, for those who have nothing else to do; workers that are forked later have it."""
    _blosc()


@cache
def _blosc() -> Any:
    """The compiled half alone: the package around it brings its tests and `unittest` (10 ms of every start), and parses
    version numbers at every call, for longer than a sample takes.

    One thread: the engine has a process for each core, and each of them holds the interpreter's lock by itself.
    """
    package = find_spec("blosc")
    folders = (package.submodule_search_locations if package else None) or []
    spec = PathFinder.find_spec("blosc_extension", list(folders))
    if spec is None or spec.loader is None:
        raise ImportError("the compiled half of blosc is not installed")
    blosc = module_from_spec(spec)
    spec.loader.exec_module(blosc)
    blosc.init()
    blosc.set_releasegil(False)
    blosc.set_nthreads(1)
    return blosc


@cache
def _zstandard() -> tuple[Callable[..., bytes], Callable[..., bytes]]:
    import zstandard

    packer = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False, write_content_size=True)
    return packer.compress, zstandard.ZstdDecompressor().decompress


ENCODERS: dict[Codec, Callable[[Plain], Plain]] = {
    "lz4": _lz4,
    "zstd": _zstd,
    "bits2": _bits2,
    "bits4": _bits4,
    "floats2": _floats2,
    "floats4": _floats4,
}
