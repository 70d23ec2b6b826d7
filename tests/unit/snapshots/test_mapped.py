"""Which files may be stored to without a word."""

from __future__ import annotations

import mmap
from pathlib import Path

from common.snapshots.mapped import mapped_inodes


def test_a_file_is_named_while_it_is_mapped_shared_and_writable_and_at_no_other_time(tmp_path: Path) -> None:
    path = tmp_path / "a name with spaces"
    path.write_bytes(bytes(8192))
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        for access, is_named in ((mmap.ACCESS_WRITE, True), (mmap.ACCESS_READ, False), (mmap.ACCESS_COPY, False)):
            with mmap.mmap(file.fileno(), 0, access=access):
                assert (inode in mapped_inodes()) is is_named
        assert inode not in mapped_inodes()
