"""What the agent remembers over its own restarts: `state.json` in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.domain.host import Attest, OrderResult, SnapshotReport, StorageCredentials
from common.domain.model import Model


class Place(Model):
    """What the last order came with: enough for a last snapshot when nobody answers any more."""

    epoch: int
    args: dict[str, Any]
    credentials: StorageCredentials


class Remembered(Model):
    """What survives a restart of the agent."""

    token: str
    rev: int = 0
    """The highest record rev seen: older replies are ignored."""
    started_epoch: int = 0
    """The last epoch it began to write in; set only after the restore of that epoch is complete."""
    seq: int = 0
    frozen: bool = False
    fz: str | None = None
    vetoes: tuple[str, ...] = ()
    """What said at the freeze that the machine was not idle."""
    last: OrderResult | None = None
    snapshot: SnapshotReport | None = None
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    starts: int = 0
    """Of the agent on this machine."""
    place: Place | None = None
    """Where a last snapshot may go, and until when."""
    dead_man_s: float = 1800.0
    attest: Attest | None = None


def remembered(home: Path) -> Remembered:
    state = home / "state.json"
    if state.exists():
        return Remembered.model_validate_json(state.read_bytes())
    booted = json.loads((home / "token").read_text())
    return Remembered(token=booted["token"])
