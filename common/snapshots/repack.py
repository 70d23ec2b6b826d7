"""What a snapshot keeps in the store without needing it, and when it is time to send the rest anew.

A pack goes as a whole or not at all (module `prune`), and a chunk of small files while one of them is as it was: so a
pack of which little is needed keeps all the rest. A snapshot that repacks counts on none of those packs: it reads the
files again whose bytes lie there, and what it sends stands close together. Repacking itself removes nothing. The packs
that were left go like all others, when no kept snapshot needs them, so that nothing a prune counts on changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.snapshots.manifest import Entry, Manifest

NEEDED_SHARE = 0.5
"""A pack of which less is needed is left. So what is sent anew is never more than what becomes free."""
SMALL_PACK_BYTES = 1 << 20
SMALL_PACKS_MAX = 100
"""A snapshot every ten minutes leaves a small pack each time that something was saved; a restore asks for each of them.
When there are more than so many, they are put together."""
WASTE_SHARE, WASTE_BYTES = 0.1, 64 << 20
"""Of what a snapshot keeps in the store, and at least so much: less is not worth a second reading of the files."""


@dataclass(frozen=True)
class Waste:
    """What would be gained if the files whose bytes lie in `packs` were sent anew."""

    packs: frozenset[str]
    bytes: int
    """In the store, not needed, and not to be had back otherwise."""
    is_worth_it: bool


def waste_of(manifest: Manifest) -> Waste:
    """By this snapshot alone: what older ones still need of its packs ends with their retention."""
    needed = _needed_bytes(manifest)
    thin = {name for name, pack in manifest.packs.items() if needed.get(name, 0) < NEEDED_SHARE * pack.size}
    small = {name for name, pack in manifest.packs.items() if pack.size < SMALL_PACK_BYTES}
    packs = frozenset(thin | small if len(small) > SMALL_PACKS_MAX else thin)
    wasted = sum(max(0, manifest.packs[name].size - int(needed.get(name, 0))) for name in packs)
    stored = sum(pack.size for pack in manifest.packs.values())
    is_much = wasted >= max(WASTE_BYTES, WASTE_SHARE * stored)
    return Waste(packs, wasted, is_worth_it=is_much or len(small) > SMALL_PACKS_MAX)


def without(manifest: Manifest, packs: frozenset[str]) -> Manifest:
    """The manifest as if those packs were not there: without the files that need them. No snapshot, but what the next
    one can count on."""
    chunks = {name: chunk for name, chunk in manifest.chunks.items() if chunk.pack not in packs}

    def stays(entry: Entry) -> bool:
        return all(extent.chunk in chunks for extent in entry.extents)

    kept = {name: pack for name, pack in manifest.packs.items() if name not in packs}
    return replace(manifest, entries=tuple(filter(stays, manifest.entries)), chunks=chunks, packs=kept)


def _needed_bytes(manifest: Manifest) -> dict[str, float]:
    """Of each pack, as it is stored. Files of the same content count as often as there are some, to a chunk's end at
    most: that is too much rather than too little."""
    plain: dict[str, int] = dict.fromkeys(manifest.chunks, 0)
    for entry in manifest.entries:
        for extent in entry.extents:
            plain[extent.chunk] += extent.length
    needed: dict[str, float] = {}
    for name, chunk in manifest.chunks.items():
        share = min(1.0, plain[name] / chunk.plain)
        needed[chunk.pack] = needed.get(chunk.pack, 0.0) + chunk.stored * share
    return needed
