"""A host's word about a snapshot is believed when the store says the same; no byte is read back twice."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from common.domain.instance import Instance
from common.domain.version import Version
from common.errors import SnapshotError
from common.ports import App, Where
from common.records import manifest_key_of, prefix_of
from common.snapshots import engine

if TYPE_CHECKING:
    from common.snapshots.engine import Verified

PROVEN_FROM_LAST = 200
"""Snapshots whose verification may have proved an object that a new one needs."""


def verified(app: App, instance: Instance, manifest_key: str, version: Version) -> Verified:
    """The snapshot stands in the store as a whole, and is of the version that its host says.

    Raises `SnapshotError` or `ObjectMissing` when the store says that it is not, `ObjectStoreError` without an answer.
    """
    found = engine.verify(
        app.objects,
        manifest_key,
        prefix=prefix_of(instance),
        instance_key=manifest_key_of(app, instance),
        proven=partial(_proven, app, instance),
    )
    if found.version != version:
        raise SnapshotError(f"the manifest is of version {found.version}, its host says {version}")
    return found


def _proven(app: App, instance: Instance) -> set[str]:
    """Packs that need not be read back again; none after a failure, for then all of them were sent again."""
    if instance.snapshot_failures:
        return set()
    where: list[Where] = [("instance_key", "==", instance.key)]
    docs = app.store.query("snapshots", where, order_by="taken_at", newest_first=True, limit=PROVEN_FROM_LAST)
    return {name for doc in docs for name in doc.data["new_packs"]}
