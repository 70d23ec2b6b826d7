"""Which snapshots are given up, and which never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from common.domain.retention import DAMAGED_KEPT_FOR, Retention, may_still_count, outdated
from common.domain.snapshot import SnapshotRecord
from common.domain.version import Version

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
LAST = Retention(last=1, hourly=0, daily=0, weekly=0)


def record(seq: int, *, damaged: bool = False) -> SnapshotRecord:
    return SnapshotRecord(
        id=f"1-{seq}",
        account="acme",
        instance_id="box",
        instance_key="acme.box",
        manifest_key=f"instances/acme.box/manifests/1-{seq}-0123456789ab.dm",
        version=Version(epoch=1, seq=seq),
        taken_epoch=1,
        taken_at=BEGIN + timedelta(minutes=seq),
        files=1,
        bytes=1,
        stored_bytes=1,
        proof="md5",
        damaged="a chunk" if damaged else None,
    )


def test_what_is_in_use_stays_however_old_it_is() -> None:
    records = [record(1), record(2), record(3)]

    assert outdated(records, in_use={"1-1"}, retention=LAST, now=BEGIN) == {"1-2"}


def test_a_damaged_snapshot_takes_no_sound_ones_place_and_goes_a_month_later() -> None:
    records = [record(1), record(2), record(3, damaged=True)]
    late = records[-1].taken_at + DAMAGED_KEPT_FOR

    assert outdated(records, in_use=(), retention=LAST, now=BEGIN) == {"1-1"}
    assert outdated(records, in_use=(), retention=LAST, now=late) == {"1-1", "1-3"}


def test_where_no_snapshot_is_sound_none_goes() -> None:
    late = BEGIN + 2 * DAMAGED_KEPT_FOR

    assert outdated([record(1, damaged=True)], in_use=(), retention=LAST, now=late) == set()


def test_a_manifest_may_count_only_when_its_report_could_still_be_accepted() -> None:
    pointer = (3, Version(epoch=3, seq=7))

    assert may_still_count(Version(epoch=3, seq=8), epoch=3, pointer=pointer)
    assert not may_still_count(Version(epoch=3, seq=7), epoch=3, pointer=pointer)
    assert not may_still_count(Version(epoch=2, seq=9), epoch=3, pointer=pointer)
    assert may_still_count(Version(epoch=4, seq=1), epoch=3, pointer=pointer)
    assert may_still_count(Version(epoch=1, seq=1), epoch=1, pointer=None)
