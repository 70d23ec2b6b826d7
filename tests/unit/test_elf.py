"""A library that wants a C library of the future: refused by the loader, and loaded once its wish is optional."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from infra.gpu_host import elf

FUTURE = "GLIBC_2.99"


def loads(library: Path) -> subprocess.CompletedProcess[str]:
    """As PyInstaller's bootloader loads Python: every symbol at once."""
    code = f"import ctypes; ctypes.CDLL({str(library)!r}, {os.RTLD_NOW | os.RTLD_GLOBAL}).zlibVersion"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def of_the_future(content: bytes) -> bytes:
    """Its `memcpy`, of GLIBC_2.14, becomes a function that no C library has, of a version that none has."""
    made = bytearray(content.replace(b"\0memcpy\0", b"\0memxxx\0").replace(b"GLIBC_2.14\0", FUTURE.encode() + b"\0"))
    hashed = 0
    for char in FUTURE.encode():  # gabi, "Hash Table Section"
        hashed = (hashed << 4) + char
        hashed = (hashed ^ (hashed & 0xF0000000) >> 24) & 0x0FFFFFFF
    (need,) = [need for need in elf.Library(made).needs() if need.name == FUTURE]
    struct.pack_into("<I", made, need.flags_at - 4, hashed)
    return bytes(made)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    code = "import zlib; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (original,) = set(re.findall(r"\S+/libz\.so\S+", maps))
    path = tmp_path / "libfuture.so"
    path.write_bytes(of_the_future(Path(original).read_bytes()))
    return path


def test_what_only_a_newer_libc_has_is_made_optional(library: Path) -> None:
    refused = loads(library)
    assert refused.returncode and FUTURE in refused.stderr

    assert elf.ease(library, (2, 35)) == [FUTURE]

    assert loads(library).returncode == 0
    assert elf.ease(library, (2, 99)) == []


def test_what_is_no_library_is_refused_by_name(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ValueError, match="script"):
        elf.ease(script, (2, 35))
