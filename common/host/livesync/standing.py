"""How an end of the live sync stands, told to the agent by a file: `livesync.json`, in the shape of the protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from common.domain.host import Sync

STANDING_FILE = "livesync.json"
TELL_EVERY_S = 1.0


async def write_standing(home: Path, standing: Callable[[], Sync]) -> None:
    """For ever, whenever it has changed; whole or not at all."""
    told: Sync | None = None
    while True:
        now = standing()
        if now != told:
            new = home / (STANDING_FILE + ".new")
            new.write_text(now.model_dump_json())
            new.replace(home / STANDING_FILE)
            told = now
        await asyncio.sleep(TELL_EVERY_S)


def read_standing(home: Path) -> Sync:
    """What the end that runs in `home` said last; nothing known when none ever did."""
    try:
        return Sync.model_validate(json.loads((home / STANDING_FILE).read_bytes()))
    except (OSError, ValueError):
        return Sync()
