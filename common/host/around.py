"""What the agent works with: the way to the control plane, and the user's processes."""

from __future__ import annotations

from typing import Protocol

from common.domain.host import Heartbeat, Reply


class Unanswered(Exception):
    """The control plane gave no usable answer: nothing is known, nothing changes."""


class Refused(Exception):
    """The control plane knows no such rental."""


class Control(Protocol):
    """The way to the control plane."""

    def beat(self, heartbeat: Heartbeat, token: str) -> Reply:
        """Raises `Unanswered` or `Refused`."""

    def notice(self, label: str, reason: str, token: str) -> None:
        """Best effort; never raises."""


class Writers(Protocol):
    """The user's processes."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...
