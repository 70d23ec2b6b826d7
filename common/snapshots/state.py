"""What an agent remembers between two snapshots, in a directory of its own outside the workspace.

Losing any of it costs time, never correctness. `stage` holds packs under way; `seen.json` says which files were
untouched since a manifest; `last.dm` is that manifest as it is stored.
"""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import SnapshotError
from common.snapshots.scan import Stamp

TICK_NS = 50_000_000
"""Longest step of a kernel's file clock (and then some): a file changed twice within it can keep its ctime."""


class State:
    def __init__(self, folder: Path, root: Path) -> None:
        if folder.resolve().is_relative_to(root.resolve()):
            raise SnapshotError(f"the state directory {folder} must not lie in the workspace {root}")
        self._folder = folder
        self.stage = folder / "stage"
        self.stage.mkdir(parents=True, exist_ok=True)

    def sweep(self, keep: frozenset[str] = frozenset()) -> None:
        """Removes what an earlier run left in the stage."""
        for path in self.stage.iterdir():
            if path.name not in keep:
                path.unlink()

    def file_clock_ns(self) -> int:
        """Now, as the file system stamps it."""
        probe = self._folder / "clock"
        probe.write_bytes(b"")
        return probe.stat().st_ctime_ns

    def remember(self, key: str, stamps: dict[bytes, Stamp], clock_ns: int) -> None:
        """The files that were as `key` has them when the clock stood there; those changed just before are left out."""
        settled = {name: stamp for name, stamp in stamps.items() if stamp[2] < clock_ns - TICK_NS}
        text = {name.decode("utf-8", "surrogateescape"): stamp for name, stamp in settled.items()}
        self._write("seen.json", json.dumps({"key": key, "stamps": text}).encode("ascii"))

    def seen(self, key: str) -> dict[bytes, Stamp]:
        """Stamps of files known to be as the manifest `key` has them; empty when nothing is remembered of it."""
        try:
            remembered = json.loads((self._folder / "seen.json").read_bytes())
            if remembered["key"] != key:
                return {}
            stamps = remembered["stamps"].items()
            return {name.encode("utf-8", "surrogateescape"): tuple(stamp) for name, stamp in stamps}
        except (FileNotFoundError, ValueError, KeyError, AttributeError):
            return {}

    def last(self) -> bytes:
        """The sealed manifest remembered; empty when there is none."""
        try:
            return (self._folder / "last.dm").read_bytes()
        except FileNotFoundError:
            return b""

    def keep_last(self, sealed: bytes) -> None:
        self._write("last.dm", sealed)

    def forget(self) -> None:
        """Before a restore changes the workspace: nothing remembered of it holds."""
        (self._folder / "seen.json").unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        new = self._folder / f"{name}.new"
        new.write_bytes(content)
        new.replace(self._folder / name)
