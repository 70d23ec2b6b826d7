"""What the programs of a machine of a pair know of it: the record's words as the agent wrote them down last.

Of the standard library alone, and read by short programs: the watchdog and the heartbeat start in a tenth of a second.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.host.atomic import write_atomically

LEAVE = signal.SIGUSR1
"""Ends the heartbeat by the record's word."""
FILE = "pair.json"
"""Holds secrets; for root alone."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """`domain.host.Pair`, and who this machine is."""

    label: str
    rev: int
    epoch: int
    writer: str | None = None
    mirror: str | None = None
    standby: str | None = None
    cand: str | None = None
    key: str = ""
    door: Mapping[str, Any] | None = None
    tunnel_keys: Mapping[str, str] = field(default_factory=dict)
    ssh_host_key: str = ""
    hand_back_in_s: float | None = None
    """To a standby, when it was heard: the role goes back to a GPU."""


def keep(home: Path, kept: Kept) -> None:
    """Whole or not at all; an older word changes nothing. Doors and keys may change without the record's `rev`."""
    before = read(home)
    if before is not None and (kept.rev < before.rev or kept == before):
        return
    write_atomically(home / FILE, json.dumps(asdict(kept)).encode())


def read(home: Path) -> Kept | None:
    """None: this machine never heard of a pair."""
    try:
        return Kept(**json.loads((home / FILE).read_bytes()))
    except FileNotFoundError:
        return None
