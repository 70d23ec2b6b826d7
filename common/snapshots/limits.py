"""What no honest manifest exceeds. A reader refuses the rest before it allocates or does anything.

A GPU host is a stranger's machine and holds its instance's key, so an authentic manifest may still be hostile.
"""

from __future__ import annotations

import re

from common.errors import SnapshotRefused

MAX_MANIFEST_BYTES = 1 << 30
"""Unpacked: about five million files."""
MAX_CHUNK_BYTES = 4 << 20
MAX_PACK_BYTES = 40 << 20
MAX_FILE_BYTES = 1 << 44
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1 << 16
MAX_TARGET_BYTES = 4095
MAX_XATTRS = 64
"""Of one entry."""
MAX_XATTR_BYTES = 1 << 16
MAX_COUNT = 1 << 40
MTIME_NS = 1 << 62
"""Modification times within 146 years of 1970. Of what is dated further away the walk says the nearest of them."""
PART_PREFIX = b".dumont-part-"
"""Of a file that a restore has not finished yet; no snapshot holds one, no manifest may name one."""
PREFIX_SHAPE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*")


def require(holds: bool, what: str) -> None:
    if not holds:
        raise SnapshotRefused(f"the manifest is refused: {what}")
