"""Which snapshot is newer, and when one is due."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self

from pydantic import BaseModel, ConfigDict


class Version(BaseModel):
    """(epoch of the last write, sequence), compared in that order."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    seq: int

    def __lt__(self, other: Self) -> bool:
        return (self.epoch, self.seq) < (other.epoch, other.seq)

    def __ge__(self, other: Self) -> bool:
        return not self < other


class SnapshotRecord(BaseModel):
    """The document `snapshots/<instance key>.<epoch>-<seq>`: a snapshot that was verified."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    id: str
    account: str
    instance_id: str
    instance_key: str
    manifest_key: str
    version: Version
    taken_epoch: int
    taken_at: datetime
    """By our clock: when it was verified."""
    files: int
    bytes: int
    stored_bytes: int
    new_packs: list[str] = []
    """Objects whose content this snapshot's verification proved by reading them back."""
    proof: str
    damaged: str | None = None
    """The chunk that a restore found damaged."""


def is_due(last_at: datetime, every_s: float, now: datetime) -> bool:
    return now - last_at >= timedelta(seconds=every_s)
