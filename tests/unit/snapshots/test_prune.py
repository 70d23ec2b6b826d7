"""A prune never removes a chunk that a kept manifest needs, whenever a snapshot runs beside it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.domain.retention import Retention, kept
from common.domain.version import Version
from common.errors import ObjectMissing, SnapshotError, SnapshotRefused
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack, pack_key
from common.snapshots.prune import GRACE, prune
from common.snapshots.seal import seal, unseal
from common.snapshots.take import MAX_SECONDS
from tests.simulation.objects import Bucket

KEY, PREFIX = b"k" * 32, "p/"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def manifest_of(packs: set[str], seq: int) -> tuple[Manifest, bytes]:
    names = sorted(packs)
    files = [Entry(name.encode(), "file", 0o644, 0, 1, "f" * 32, (Extent(0, name, 0, 1),)) for name in names]
    return seal(
        Manifest(
            PREFIX,
            Version(epoch=1, seq=seq),
            "2026-01-01T00:00:00+00:00",
            (Entry(b"", "dir", 0o755), *files),
            {name: Chunk(name, 0, 1, 1, "raw") for name in names},
            {name: Pack(1, "0" * 32) for name in names},
        ),
        KEY,
    )


class History:
    """Snapshots that begin, send packs, and end up to MAX_SECONDS later, with prunes at any time between."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = BEGIN
        self.bucket = Bucket(lambda: 0.0)
        self.seq = 0
        self.running: list[tuple[datetime, set[str], int]] = []
        self.taken: dict[str, datetime] = {}

    def begin(self) -> None:
        """From the newest manifest of now, some of whose packs it will use again: none when it repacks."""
        newest = max(self.taken, key=lambda key: self.taken[key], default=None)
        base = sorted(unseal(self.bucket.get(newest), newest, KEY).packs) if newest else []
        own = f"{self.chance.getrandbits(256):064x}"
        self.bucket.put(pack_key(PREFIX, own), b"x")
        used = self.chance.choice([0.7, 0.7, 0.0])
        packs = {own, *(pack for pack in base if self.chance.random() < used)}
        self.seq += 1
        self.running.append((self.now, packs, self.seq))

    def end(self) -> None:
        started, packs, seq = self.running.pop(self.chance.randrange(len(self.running)))
        if (self.now - started).total_seconds() > MAX_SECONDS:
            return  # it gives up, as `take` does
        manifest, sealed = manifest_of(packs, seq)
        self.bucket.put(manifest.key, sealed)
        self.taken[manifest.key] = self.now

    def prune(self) -> None:
        keep = kept(self.taken, Retention(last=1, hourly=2, daily=2, weekly=0))
        done = prune(
            self.bucket,
            prefix=PREFIX,
            needs=lambda key: unseal(self.bucket.get(key), key, KEY).packs,
            keep=lambda _there: keep,
            now=self.now,
        )
        for key in done.manifests:
            del self.taken[key]

    def check(self) -> None:
        for key in self.taken:
            for pack in unseal(self.bucket.get(key), key, KEY).packs:
                assert pack_key(PREFIX, pack) in self.bucket.objects, f"{key} lacks {pack}"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_no_order_of_snapshots_and_prunes_loses_a_pack(seed: int) -> None:
    history = History(seed)
    for _ in range(60):
        history.now += timedelta(hours=history.chance.choice([0.1, 1, 5, 11, 30]))
        step = history.chance.choice(["begin", "begin", "end", "end", "prune"])
        if step == "begin":
            history.begin()
        elif step == "end" and history.running:
            history.end()
        elif step == "prune" and history.taken:
            history.prune()
        history.check()
    history.running.clear()
    for _ in range(3):
        history.now += 2 * GRACE
        if history.taken:
            history.prune()
    needed = {pack_key(PREFIX, p) for key in history.taken for p in unseal(history.bucket.get(key), key, KEY).packs}
    there = {stored.key for stored in history.bucket.list(f"{PREFIX}packs/")}
    assert there == needed or not history.taken


def test_a_kept_manifest_that_cannot_be_read_stops_the_prune() -> None:
    history = History(1)
    history.begin()
    history.end()
    (key,) = history.taken
    history.bucket.garble(key)
    before = dict(history.bucket.objects)

    with pytest.raises(SnapshotRefused):
        history.prune()

    assert history.bucket.objects == before


def test_a_prune_that_keeps_nothing_is_refused() -> None:
    history = History(1)
    history.begin()
    history.end()

    with pytest.raises(SnapshotError):
        prune(history.bucket, prefix=PREFIX, needs=lambda _key: (), keep=lambda _: (), now=BEGIN)
    with pytest.raises(ObjectMissing):
        history.bucket.get("nothing")


def test_the_newest_of_each_hour_day_and_week_stay() -> None:
    at = {f"{hours}": BEGIN + timedelta(hours=hours / 2) for hours in range(24 * 2 * 30)}
    newest = sorted(at, key=lambda name: at[name], reverse=True)

    stay = kept(at, Retention(last=3, hourly=4, daily=2, weekly=2))

    assert set(newest[:3]) <= stay
    assert len({(at[name].date(), at[name].hour) for name in stay}) >= 4
    assert len(stay) <= 3 + 4 + 2 + 2
    assert kept({}, Retention()) == set()
