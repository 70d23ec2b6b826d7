"""The order of a workspace's contents. Apart, and of the standard library alone: a snapshot begins without waiting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True, kw_only=True, slots=True)
class Version:
    """(epoch of the last write, sequence), compared in that order."""

    epoch: int
    seq: int
