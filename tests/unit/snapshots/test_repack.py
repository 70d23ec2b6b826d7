"""Packs of which little is needed are left: nothing is lost by it, and afterwards they can go."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from common.domain.version import Version
from common.snapshots import engine
from common.snapshots.manifest import Chunk, Entry, Extent, Manifest, Pack
from common.snapshots.repack import SMALL_PACK_BYTES, SMALL_PACKS_MAX, WASTE_BYTES, waste_of
from tests.snapshots_fixtures import KEY, PREFIX, TAKEN_AT, Box, tree

FILES, KEPT_EVERY = 36, 6
FILE_BYTES = 200_000
"""Six of them make a chunk."""


@pytest.fixture
def thinned(box: Box) -> engine.Taken:
    """A snapshot of files of which most are gone since the one before: a few of each chunk are left."""
    for number in range(FILES):
        (box.root / f"{number:02}").write_bytes(os.urandom(FILE_BYTES))
    first = box.take(1)
    for number in range(FILES):
        if number % KEPT_EVERY:
            (box.root / f"{number:02}").unlink()
    return box.take(2, previous=first.manifest)


def test_what_is_kept_in_vain_is_known(box: Box, thinned: engine.Taken) -> None:
    found = box.verify(thinned.manifest_key)

    gone = FILE_BYTES * (FILES - FILES // KEPT_EVERY)
    assert gone * 0.9 < found.wasted_bytes <= gone * 1.01
    assert not found.wants_repacking  # some MB are not worth it
    assert thinned.stored_bytes < FILE_BYTES  # it sent no file


def test_a_repacking_snapshot_sends_what_is_left_and_needs_no_thin_pack(box: Box, thinned: engine.Taken) -> None:
    before = set(thinned.manifest.packs)

    taken = box.take(3, previous=thinned.manifest, repacks=True)

    left = FILE_BYTES * FILES // KEPT_EVERY
    assert before.isdisjoint(taken.manifest.packs)
    assert left < taken.stored_bytes < left * 1.05
    assert box.verify(taken.manifest_key).wasted_bytes == 0
    box.restore(taken.manifest_key)
    assert tree(box.copy) == tree(box.root)


def test_an_older_snapshot_stays_whole_until_it_goes_itself(box: Box, thinned: engine.Taken) -> None:
    taken = box.take(3, previous=thinned.manifest, repacks=True)

    def pruned(*kept: engine.Taken, days: int) -> engine.Pruned:
        return engine.prune(
            box.objects,
            prefix=PREFIX,
            needs=lambda key: engine.load_manifest(box.objects, key, KEY).packs,
            keep=lambda _listed: {each.manifest_key for each in kept},
            now=TAKEN_AT + timedelta(days=days),
        )

    assert pruned(thinned, taken, days=0).packs == pruned(thinned, taken, days=2).packs == ()
    assert box.verify(thinned.manifest_key).ok
    pruned(taken, days=4)

    freed = pruned(taken, days=6)

    assert freed.bytes > FILE_BYTES * FILES * 0.9
    box.restore(taken.manifest_key)
    assert tree(box.copy) == tree(box.root)


def test_packs_that_are_needed_stay_in_use(box: Box) -> None:
    (box.root / "whole").write_bytes(os.urandom(3 << 20))
    first = box.take(1)
    (box.root / "new").write_bytes(os.urandom(FILE_BYTES))

    taken = box.take(2, previous=first.manifest, repacks=True)

    assert set(first.manifest.packs) < set(taken.manifest.packs)
    assert taken.new_bytes == FILE_BYTES


def test_a_file_that_changes_meanwhile_is_as_it_is_now(box: Box, thinned: engine.Taken) -> None:
    """It would have been read in any case, and nothing of the thin pack is counted on."""
    (box.root / "00").write_bytes(b"another")
    (box.root / "06").unlink()

    taken = box.take(3, previous=thinned.manifest, repacks=True)

    box.restore(taken.manifest_key)
    assert tree(box.copy) == tree(box.root)


def test_it_is_worth_it_when_much_is_wasted() -> None:
    size = 8 * WASTE_BYTES
    assert not waste_of(_manifest({"a" * 64: (size, size)})).is_worth_it
    assert not waste_of(_manifest({"a" * 64: (size, size), "b" * 64: (WASTE_BYTES // 2, 1)})).is_worth_it
    found = waste_of(_manifest({"a" * 64: (size, size), "b" * 64: (2 * WASTE_BYTES, WASTE_BYTES // 2)}))
    assert (found.packs, found.bytes, found.is_worth_it) == ({"b" * 64}, 2 * WASTE_BYTES - WASTE_BYTES // 2, True)
    # a tenth of very much is more
    much = {f"{n:064}": (size, size) for n in range(4)}
    assert not waste_of(_manifest({**much, "b" * 64: (2 * WASTE_BYTES, WASTE_BYTES // 2)})).is_worth_it


def test_many_small_packs_are_put_together() -> None:
    small = {f"{n:064}": (SMALL_PACK_BYTES - 1, SMALL_PACK_BYTES - 1) for n in range(SMALL_PACKS_MAX)}
    large = {"a" * 64: (SMALL_PACK_BYTES, SMALL_PACK_BYTES)}
    assert not waste_of(_manifest({**small, **large})).packs

    more = {**small, "b" * 64: (1, 1)}
    found = waste_of(_manifest({**more, **large}))

    assert (found.packs, found.bytes, found.is_worth_it) == (set(more), 0, True)


def _manifest(packs: dict[str, tuple[int, int]]) -> Manifest:
    """Of packs by name: (bytes, of which one file needs so many)."""
    chunks = {name: Chunk(name, 0, size, size, "raw") for name, (size, _) in packs.items()}
    files = tuple(
        Entry(name.encode(), "file", 0o644, 0, needed, "f" * 32, (Extent(0, name, 0, needed),))
        for name, (_, needed) in packs.items()
    )
    kept = {name: Pack(size, "0" * 32) for name, (size, _) in packs.items()}
    return Manifest(PREFIX, Version(epoch=1, seq=1), "2026-01-02T03:04:00+00:00", files, chunks, kept)
