"""The snapshot engine's verbs, in one place: callers import this module and no other of the package.

`take` and `restore` run on hosts (no boto3), `verify` and `load_manifest` in the control plane.
"""

from __future__ import annotations

from common.snapshots.diff import Difference, Names, diff
from common.snapshots.manifest import Manifest
from common.snapshots.packing import Progress
from common.snapshots.restore import Restored, fetch_manifest, restore
from common.snapshots.take import Sent, Taken, take
from common.snapshots.transfer import Endpoint
from common.snapshots.verify import Verified, load_manifest, verify

__all__ = [
    "Difference",
    "Endpoint",
    "Manifest",
    "Names",
    "Progress",
    "Restored",
    "Sent",
    "Taken",
    "Verified",
    "diff",
    "fetch_manifest",
    "load_manifest",
    "restore",
    "take",
    "verify",
]
