"""Files that are whole or not there, whatever dies."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the machine dies."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
