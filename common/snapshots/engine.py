"""The snapshot engine's verbs, in one place: callers import this module and no other of the package.

`take` and `restore` run on hosts (no boto3), `verify`, `load_manifest`, `prune` and `drill` in the control plane.
"""

from __future__ import annotations

from common.snapshots.diff import Difference, Names, diff
from common.snapshots.drill import Drilled, drill
from common.snapshots.manifest import Manifest
from common.snapshots.packing import Counts, Progress
from common.snapshots.prune import Pruned, prune
from common.snapshots.restore import Restored, fetch_manifest, restore
from common.snapshots.seal import KEY_SHAPE as MANIFEST_KEY
from common.snapshots.take import MAX_SECONDS, Sent, Taken, take
from common.snapshots.transfer import Endpoint
from common.snapshots.verify import Verified, load_manifest, verify

__all__ = [
    "MANIFEST_KEY",
    "MAX_SECONDS",
    "Counts",
    "Difference",
    "Drilled",
    "Endpoint",
    "Manifest",
    "Names",
    "Progress",
    "Pruned",
    "Restored",
    "Sent",
    "Taken",
    "Verified",
    "diff",
    "drill",
    "fetch_manifest",
    "load_manifest",
    "prune",
    "restore",
    "take",
    "verify",
]
