"""A standby of the world: its disk stays when Google stops it, and it lets users in when its GPU is dead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tests.simulation.hosts import Machine


@dataclass
class Standby(Machine):
    is_standby: ClassVar[bool] = True

    @property
    def is_open(self) -> bool:
        """The door stands here: the record says so, or the seal (what is written then is provisional)."""
        if self.has_frozen_writers or self.link is None:
            return False
        role = self.link.role
        return role.sealed is not None or role.is_writer

    def _exits(self) -> None:
        """Its agent has ended; the machine runs, and bills, on."""
        self.agent = None
