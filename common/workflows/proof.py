"""What earlier verifications have proved already, so that no byte is read back twice."""

from __future__ import annotations

from common.domain.instance import Instance
from common.ports import App, Where

PROVEN_FROM_LAST = 200
"""Snapshots whose verification may have proved an object that a new one needs."""


def proven(app: App, instance: Instance) -> set[str]:
    """Packs that need not be read back again; none after a failure, for then all of them were sent again."""
    if instance.snapshot_failures:
        return set()
    where: list[Where] = [("instance_key", "==", instance.key)]
    docs = app.store.query("snapshots", where, order_by="taken_at", newest_first=True, limit=PROVEN_FROM_LAST)
    return {name for doc in docs for name in doc.data["new_packs"]}
