"""What the live sync says when it cannot do what it was asked for."""

from __future__ import annotations

from common.errors import DumontError


class NotInSync(DumontError):
    """The barrier was not passed: the sentence says why. What it was to wait for may be lost with this machine."""

    code = "not_in_sync"
    status = 503


class TurnedAway(Exception):
    """The receiver does not take our frames; the reason is its own."""


class Lacks(Exception):
    """A name is not what the frame supposes: the sender is asked for it."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path
