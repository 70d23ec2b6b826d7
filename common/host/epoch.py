"""The role of this machine on its disk, shared by its programs: agent (hears), receiver (takes), watchdog (seals).

One file, written atomically and fsynced, under one lock between processes. Who takes frames holds the lock while it
renames them into place, so that a seal falls between two commits and never into one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from common.domain.role import Claim, Role, View
from common.domain.version import Version
from common.host.atomic import write_atomically

FILE, LOCK, SEALED = "role.json", "role.lock", "role.sealed"


class Fenced(Exception):
    """A frame of a writer or an epoch that the record does not name here, or after the seal: it is not taken."""


class Epoch:
    """`folder` = the agent's own. Every method may be called from any process of the machine."""

    def __init__(self, folder: Path, label: str) -> None:
        self._folder, self._label = folder, label
        folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> Role:
        """The role as it was last written; a machine that never heard anything has an empty one."""
        try:
            kept = json.loads((self._folder / FILE).read_bytes())
        except FileNotFoundError:
            return Role(label=self._label)
        return Role(
            label=kept["label"],
            view=View(**kept["view"]),
            version=Version(**kept["version"]),
            is_whole=kept["is_whole"],
            sealed=kept["sealed"],
            refused=kept.get("refused"),
            is_filling=kept.get("is_filling", False),
            fillings=kept.get("fillings", 0),
        )

    def hear(self, view: View) -> Role:
        """The record's words, if they are newer than what was heard before."""
        return self._change(lambda role: role.heard(view))

    def seal(self) -> Claim:
        """From here on no frame is taken. Returns after the seal is on disk; raises ValueError (see `Role.seal`)."""
        claim = self._change(lambda role: role.seal()).claim
        assert claim is not None
        (self._folder / SEALED).touch()
        return claim

    def sealed_at_ns(self) -> int | None:
        """By this machine's clock; None = it never sealed."""
        try:
            return (self._folder / SEALED).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def taking(self, epoch: int, label: str, *, fillings: int | None = None) -> Iterator[Callable[[int, bool], None]]:
        """Hold the right to put frames in place: `done(seq, is_whole)` says what the content has become.

        `fillings` = the role's, as the frames' stream began. Raises `Fenced` before anything is put in place.
        """
        with self._locked():
            role = self.read()
            if not role.may_take(epoch, label):
                raise Fenced(f"{label} of epoch {epoch} is not the writer here: {role.view}, sealed {role.sealed}")
            if fillings not in (None, role.fillings):
                raise Fenced("a snapshot was put in place here since this stream began: what it sent may be gone")

            def done(seq: int, is_whole: bool) -> None:
                self._write(role.took(Version(epoch=epoch, seq=seq), is_whole=is_whole))

            yield done

    def fill(self, *, is_on: bool) -> Role:
        """Before a snapshot is put in place, and when that has failed; when it is there, `restored` says so."""
        return self._change(lambda role: role.filling(is_on=is_on))

    def wrote(self, version: Version) -> Role:
        """This machine writes, and has come to this version."""
        return self._change(lambda role: role.wrote(version))

    def restored(self, version: Version) -> Role:
        """The content is that of a snapshot now, whole."""
        return self._change(lambda role: replace(role, version=version, is_whole=True, is_filling=False))

    def _change(self, how: Callable[[Role], Role]) -> Role:
        with self._locked():
            before = self.read()
            after = how(before)
            if after != before:
                self._write(after)
            return after

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._folder / LOCK, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, role: Role) -> None:
        write_atomically(self._folder / FILE, json.dumps(asdict(role)).encode())
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
