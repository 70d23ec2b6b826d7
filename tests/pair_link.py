"""What links the two machines of a pair in a world whose clock a test turns: a copy of files instead of streams.

The roles, the fence and the seal are the product's own, on each machine's disk. Only how bytes get from one folder into
the other, and how a standby notices that its GPU is silent, is as short as a test can have it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from common.domain.host import Door, Sync
from common.domain.watch import FIRST_BEAT_S
from common.host.epoch import Epoch, Fenced
from common.host.pair import Kept

LEASE_S = 1.0


@dataclass
class Link:
    """`host.programs.Programs` of one machine. `others` = every machine's link by label; `now` = the test's clock."""

    label: str
    home: Path
    workspace: Path
    is_standby: bool
    others: Mapping[str, Link]
    now: Callable[[], datetime]
    reaches: Callable[[str, str], bool]
    """reaches(label, label): is there a way between the two?"""
    kept: Kept | None = None
    seq: int = 0
    equal: tuple[int, str] | None = None
    """(epoch, label of the other) of the last copy that was complete."""
    heard_at: datetime | None = None
    """Of a standby: its GPU's last sign."""
    watched_from: datetime | None = None
    """Of a mirror: since it heard that it is one."""
    is_deaf: bool = False
    """Of a standby: files reach it and heartbeats do not, for a firewall stands before that port."""
    holds_back: bool = False
    """Of a GPU: it beats, and what is written there is still on its way."""
    stopped: bool = False
    seen: dict[str, bytes] = field(default_factory=dict)

    def follow(self, kept: Kept) -> None:
        was_mirror = self.kept is not None and self.kept.mirror == self.label
        self.kept = kept
        if kept.writer == self.label:
            self.heard_at = None  # what it hears from now on is of another GPU
        if kept.mirror == self.label and not was_mirror:
            self.watched_from = self.now()

    def tend(self) -> None:
        if self.kept is None or self.stopped:
            return
        other = self._receiver()
        if other is not None:
            self._send(other)
        if self.is_standby:
            self._watch()

    def _receiver(self) -> Link | None:
        """Who takes what this machine writes."""
        kept = self.kept
        if kept is None or kept.writer != self.label:
            return None
        label = kept.cand if self.is_standby else kept.standby
        other = self.others.get(label or "")
        return other if other and not other.stopped and self.reaches(self.label, other.label) else None

    def _send(self, other: Link) -> None:
        assert self.kept is not None
        other.heard_at = None if other.is_deaf else self.now()
        files = _files(self.workspace)
        if self.holds_back:
            return
        if files == _files(other.workspace) and self.equal == (self.kept.epoch, other.label):
            return
        try:
            with Epoch(other.home, other.label).taking(self.kept.epoch, self.label) as done:
                _make_equal(self.workspace, other.workspace)
                self.seq += 1
                done(self.seq, True)
        except Fenced:
            self.equal = None
        else:
            self.equal = (self.kept.epoch, other.label)

    def _watch(self) -> None:
        epoch, kept = Epoch(self.home, self.label), self.kept
        if kept is None or not epoch.read().may_seal:
            return
        since, patience_s = (self.heard_at, LEASE_S) if self.heard_at else (self.watched_from, FIRST_BEAT_S)
        is_silent = since is not None and self.now() - since > timedelta(seconds=patience_s)
        if is_silent or epoch.read().view.is_called:
            epoch.seal()

    def pids(self) -> frozenset[int]:
        return frozenset()

    def sync(self) -> Sync | None:
        if self.kept is None:
            return None
        role = Epoch(self.home, self.label).read()
        if self.kept.writer == self.label and self.equal:
            return Sync(epoch=self.equal[0], seq=self.seq, is_whole=True, peer=self.equal[1], lag_s=0.0)
        version = {"epoch": role.version.epoch, "seq": role.version.seq}
        hears = self.heard_at is not None
        return Sync(**version, is_whole=role.is_whole, peer=role.view.writer, lag_s=0.0, hears=hears)

    def mark(self, above: int) -> int:
        self.seq = max(self.seq, above, Epoch(self.home, self.label).read().version.seq) + 1
        return self.seq

    def tunnel_key(self) -> str | None:
        return None if self.is_standby else f"ssh-ed25519 key-of-{self.label}"

    def door(self) -> Door | None:
        if not self.is_standby:
            return None
        return Door(host="127.0.0.1", ssh_port=2200, udp_port=2201, host_key=f"ssh-ed25519 host-{self.label}")

    def farewell(self) -> None:
        """Machines of these worlds go without a word."""

    def stop(self) -> None:
        self.stopped = True


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _make_equal(source: Path, target: Path) -> None:
    for path in target.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(source, target, dirs_exist_ok=True)
