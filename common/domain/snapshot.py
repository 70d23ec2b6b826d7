"""Which snapshot is newer, and when one is due."""

from datetime import datetime, timedelta

from common.domain.model import Model
from common.domain.version import Version

PACKS_NAMED_MAX = 6000
"""In one record: a document of the store holds 1 MiB."""


class SnapshotRecord(Model):
    """The document `snapshots/<instance key>.<epoch>-<seq>`: a snapshot that was verified."""

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
    wasted_bytes: int = 0
    """Of the packs that it needs, what no file of it needs and a repacking would free."""
    new_packs: list[str] = []
    """Objects whose content this snapshot's verification proved by reading them back, or that of one kept no longer."""
    packs: list[str] | None = None
    """Objects that it needs; None = more than PACKS_NAMED_MAX, its manifest tells."""
    proof: str
    damaged: str | None = None
    """The chunk that a restore found damaged."""
    given_up_at: datetime | None = None
    """Nobody may start from it any more: its objects are on their way out."""

    @property
    def order(self) -> tuple[int, Version]:
        return self.taken_epoch, self.version

    @property
    def may_start(self) -> bool:
        """May a machine get this one?"""
        return self.damaged is None and self.given_up_at is None


class DrillRecord(Model):
    """The document `drills/<instance key>`: the newest drill."""

    schema_version: int = 1
    at: datetime
    snapshot: str
    """<epoch>-<sequence>"""
    is_sound: bool
    is_whole: bool = False
    """All of it was read, not a sample."""
    files: int = 0
    of_files: int = 0
    bytes: int = 0
    of_bytes: int = 0
    seconds: float = 0.0
    damage: str = ""


def is_due(last_at: datetime, every_s: float, now: datetime) -> bool:
    return now - last_at >= timedelta(seconds=every_s)
