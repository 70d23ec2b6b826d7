"""The snapshot engine's verbs, in one place: callers import this module and no other of the package.

`take` and `restore` run on hosts (no boto3), `verify`, `load_manifest`, `prune` and `drill` in the control plane. Each
is loaded with its first use: most invocations of a function use none, and all of them together are a tenth of a cold
start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.snapshots.changed import changed_since
    from common.snapshots.diff import Difference, Names, diff
    from common.snapshots.drill import Drilled, drill
    from common.snapshots.manifest import Manifest
    from common.snapshots.packing import Counts, Progress
    from common.snapshots.prune import Pruned, prune
    from common.snapshots.restore import Restored, fetch_manifest, restore
    from common.snapshots.seal import KEY_SHAPE as MANIFEST_KEY
    from common.snapshots.selection import lacking, selected
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
    "changed_since",
    "diff",
    "drill",
    "fetch_manifest",
    "lacking",
    "load_manifest",
    "prune",
    "restore",
    "selected",
    "take",
    "verify",
]
_MODULES = {
    "changed": ("changed_since",),
    "diff": ("Difference", "Names", "diff"),
    "drill": ("Drilled", "drill"),
    "manifest": ("Manifest",),
    "packing": ("Counts", "Progress"),
    "prune": ("Pruned", "prune"),
    "restore": ("Restored", "fetch_manifest", "restore"),
    "selection": ("lacking", "selected"),
    "take": ("MAX_SECONDS", "Sent", "Taken", "take"),
    "transfer": ("Endpoint",),
    "verify": ("Verified", "load_manifest", "verify"),
}
_PLACES = {"MANIFEST_KEY": ("seal", "KEY_SHAPE")} | {
    name: (module, name) for module, names in _MODULES.items() for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"the engine has no {name}")
    module, known_as = _PLACES[name]
    found = getattr(importlib.import_module(f"common.snapshots.{module}"), known_as)
    globals()[name] = found
    return found
