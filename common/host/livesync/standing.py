"""How an end of the live sync stands, told to the agent by a file: `livesync.json`, in the shape of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from common.domain.host import Sync

STANDING_FILE = "livesync.json"
TELL_EVERY_S = 1.0
MARGIN_S = 2.0
"""Of what the kernel had not told the sender when it wrote, and of the kernel's own coarse clock."""


async def write_standing(home: Path, standing: Callable[[], Sync]) -> None:
    """For ever, whenever it has changed; whole or not at all. What a full disk does not take is told a little later."""
    told: Sync | None = None
    while True:
        now = standing()
        if now != told:
            with contextlib.suppress(OSError):
                new = home / (STANDING_FILE + ".new")
                new.write_text(now.model_dump_json())
                new.replace(home / STANDING_FILE)
                told = now
        await asyncio.sleep(TELL_EVERY_S)


def confirmed_until_ns(home: Path) -> int | None:
    """By this machine's clock: what had changed before it is on the other machine too. None = nobody knows.

    It is the moment at which the sender wrote how it stands, less the age of its oldest unconfirmed change; after the
    last change it writes nothing new, so that this is early rather than late.
    """
    said = read_standing(home)
    if not said.is_whole or said.lag_s is None:
        return None
    written_at_ns = (home / STANDING_FILE).stat().st_mtime_ns
    return written_at_ns - int((said.lag_s + MARGIN_S) * 1e9)


def read_standing(home: Path) -> Sync:
    """What the end that runs in `home` said last; nothing known when none ever did."""
    try:
        return Sync.model_validate(json.loads((home / STANDING_FILE).read_bytes()))
    except (OSError, ValueError):
        return Sync()
