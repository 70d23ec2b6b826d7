"""Which offers to rent, in which order: the strategies as pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from common.domain.offer import Offer

RACERS = 5
"""Rentals in one race."""


class Strategy(StrEnum):
    COLDSTART = "coldstart"
    """One machine: the cheapest that fits."""
    RACE = "race"
    """Five machines; the first that is ready wins, the others are released."""


RENTALS_PER_ROUND = {Strategy.COLDSTART: 1, Strategy.RACE: RACERS}


def choose(offers: Sequence[Offer], strategy: Strategy, *, tried: Collection[str] = ()) -> list[Offer]:
    """The offers of one round: the cheapest first, one per machine, untried machines only.

    When every machine was tried already, they are all candidates again: an offer that was gone may be back.
    """
    count = RENTALS_PER_ROUND[strategy]
    fresh = [offer for offer in offers if offer.machine_id not in tried]
    chosen: dict[str, Offer] = {}
    for offer in fresh or offers:
        chosen.setdefault(offer.machine_id, offer)
    return list(chosen.values())[:count]
