"""What an agent remembers between two snapshots, in a directory of its own outside the workspace.

Losing any of it costs time, never correctness. `seen` says which files were untouched since a manifest, `last.dm` is
that manifest as it is stored, `stage` holds packs that a restore has fetched.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

from common.errors import SnapshotError, is_full
from common.snapshots.manifest import Manifest

TICK_NS = 50_000_000
"""Longest step of a kernel's file clock (and then some): a file changed twice within it can keep its ctime."""
SEEN = b"DUMONT-SEEN-3 "


class State:
    def __init__(self, folder: Path, root: Path) -> None:
        if folder.resolve().is_relative_to(root.resolve()):
            raise SnapshotError(f"the state directory {folder} must not lie in the workspace {root}")
        self.folder = folder
        self.stage = folder / "stage"
        self.stage.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Removes what an earlier run left in the stage."""
        for path in self.stage.iterdir():
            path.unlink()

    def file_clock_ns(self) -> int:
        """Now, as the file system stamps it."""
        probe = self.folder / "clock"
        probe.write_bytes(b"")
        return probe.stat().st_ctime_ns

    def remember(self, manifest: Manifest, times_ns: Sequence[int], inodes: Sequence[int], clock_ns: int) -> None:
        """The files that were as the manifest has them when the clock stood there; those changed just before are not.

        ctime and inode in the manifest's order; 0 = not known. The rest of a stamp is the manifest's.
        """
        latest_ns = clock_ns - TICK_NS
        times = array("q", (at if at < latest_ns else 0 for at in times_ns))
        known = array("Q", (inode if at < latest_ns else 0 for at, inode in zip(times_ns, inodes, strict=True)))
        head = SEEN + manifest.key.encode() + b"\n"
        self._write("seen", head + times.tobytes() + known.tobytes())

    def seen(self, manifest: Manifest) -> tuple[Sequence[int], Sequence[int]]:
        """(ctime_ns, inode) of each entry, as two columns: of files known to be as the manifest has them, else 0."""
        count = len(manifest.entries)
        nothing = bytes(8 * count)
        try:
            head, _, columns = (self.folder / "seen").read_bytes().partition(b"\n")
        except FileNotFoundError:
            head, columns = b"", b""
        if head != SEEN + manifest.key.encode() or len(columns) != 16 * count:
            columns = nothing + nothing
        return array("q", columns[: 8 * count]), array("Q", columns[8 * count :])

    def last(self) -> bytes:
        """The sealed manifest remembered; empty when there is none."""
        try:
            return (self.folder / "last.dm").read_bytes()
        except FileNotFoundError:
            return b""

    def keep_last(self, sealed: bytes) -> None:
        self._write("last.dm", sealed)

    def forget(self) -> None:
        """Before a restore changes the workspace: nothing remembered of it holds."""
        (self.folder / "seen").unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        """Unless the disk is full: a snapshot of what fills it is worth more than the time of the next one."""
        new = self.folder / f"{name}.new"
        try:
            new.write_bytes(content)
            new.replace(self.folder / name)
        except OSError as error:
            new.unlink(missing_ok=True)
            if not is_full(error):
                raise
