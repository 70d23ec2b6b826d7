"""Removes what no kept snapshot needs, and never a chunk that one needs: also while a snapshot is being taken.

A pack goes only when it was found needed by no manifest, at every prune, for `grace` on end. Why that is enough: a
snapshot that is being taken relies on packs it has sent itself, and on those of the manifest it began from. It takes at
most half of `grace`, and counts from a manifest that was there when it began. Packs of its
own are seen as not needed for less than `grace` before its manifest names them. Packs of its base were needed until the
prune that dropped the base, and that prune at the earliest starts their time; before it is over, the new manifest is
there, and every prune lists the packs first and the manifests afterwards. Only a prune drops manifests; `now` is the
clock of who prunes, always the same one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from common.errors import ObjectStoreError, SnapshotError
from common.snapshots.manifest import pack_key
from common.snapshots.verify import Readable

GRACE = timedelta(hours=24)

Needs = Callable[[str], Iterable[str]]
"""The names of the packs that the manifest of that key needs."""
Keep = Callable[[list[str]], Collection[str]]
"""Of the manifests listed (and others that are known to be there, though no listing shows them yet) those that stay."""


class Prunable(Readable, Protocol):
    """What a prune needs of an object store (`ports.ObjectStore` has it)."""

    def put(self, key: str, data: bytes) -> None: ...

    def delete(self, keys: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Pruned:
    manifests: tuple[str, ...]
    packs: tuple[str, ...]
    bytes: int
    waiting: int
    """Packs that nobody needs by now, and that a later prune removes."""
    next_at: datetime | None = None
    """When the first of them may go."""


def prune(
    objects: Prunable, *, prefix: str, needs: Needs, keep: Keep, now: datetime, grace: timedelta = GRACE
) -> Pruned:
    """Removes manifests that `keep` does not name, and packs whose time is over.

    Raises `SnapshotError` or `ObjectStoreError`, then without having removed anything that was needed: a kept manifest
    that cannot be read stops it, for nobody knows what that one needs.
    """
    packs = {stored.key: stored.size for stored in objects.list(pack_key(prefix, ""))}
    since = _marks(objects, prefix)
    manifests = [stored.key for stored in objects.list(f"{prefix}manifests/")]
    kept = set(keep(manifests))
    if manifests and not kept:
        raise SnapshotError("a prune that keeps no snapshot at all is refused")
    needed = {pack_key(prefix, pack) for name in sorted(kept) for pack in needs(name)}
    dropped = [name for name in manifests if name not in kept]
    needed_until_now = _packs_of_dropped(dropped, needs, prefix, packs)
    if dropped:
        objects.delete(dropped)
    unneeded = [key for key in packs if key not in needed]
    marks = {key: now if key in needed_until_now else since.get(key, now) for key in unneeded}
    ripe = tuple(key for key, at in marks.items() if now - at >= grace)
    if ripe:
        objects.delete(ripe)
    gone = set(ripe)
    waiting = {key: at for key, at in marks.items() if key not in gone}
    _remember(objects, prefix, waiting, now)
    next_at = min(waiting.values()) + grace if waiting else None
    return Pruned(tuple(dropped), ripe, sum(packs[key] for key in ripe), len(waiting), next_at)


def _packs_of_dropped(dropped: list[str], needs: Needs, prefix: str, packs: Collection[str]) -> set[str]:
    """One that cannot be read may have needed anything: then the time of every pack starts anew."""
    try:
        return {pack_key(prefix, pack) for name in dropped for pack in needs(name)}
    except (SnapshotError, ObjectStoreError):
        return set(packs)


def _marks(objects: Prunable, prefix: str) -> dict[str, datetime]:
    """Since when each pack is not needed, as the newest prune saw it."""
    names = sorted(stored.key for stored in objects.list(f"{prefix}prune/"))
    if not names:
        return {}
    try:
        marks: Any = json.loads(objects.get(names[-1]))
        return {str(key): datetime.fromisoformat(at) for key, at in marks.items()}
    except (ValueError, AttributeError, TypeError):
        return {}  # damaged: every pack's time starts anew


def _remember(objects: Prunable, prefix: str, waiting: dict[str, datetime], now: datetime) -> None:
    """The new marks first, then the old ones away: a prune killed between leaves both, and the newest counts."""
    old = [stored.key for stored in objects.list(f"{prefix}prune/")]
    name = f"{prefix}prune/{now:%Y%m%dT%H%M%S%f}.json"
    objects.put(name, json.dumps({key: at.isoformat() for key, at in waiting.items()}).encode())
    objects.delete([key for key in old if key < name])
