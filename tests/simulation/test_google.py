"""The light clients of the world's Google answer as Google's own do: the same adapter says the same over both."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from common.adapters.gcp import ANONYMOUS, GcpCompute
from common.errors import DumontError
from infra.demo.gcp.compute import ComputeSim
from tests.gcp_rig import ADDRESS, LABEL, REGION, Carrier, launch_of, offers
from tests.simulation.clock import START, Loop
from tests.simulation.faults import Faults
from tests.simulation.google import PROJECT, Google, adapter

OTHER = "dumont-abc123-i1-8-00000000"
WHERE = re.compile(r"[A-Z]+ http://127.0.0.1:1\S+ ")
"""Google's client puts the call before the sentence."""
Say = Callable[[GcpCompute], Any]


class Side:
    """One adapter over a simulator of its own."""

    def __init__(self, *, is_light: bool) -> None:
        self.loop = Loop()
        self.google = Google(self.loop, Faults(1, {}), lambda _about: set(), random.Random(1))
        self.sim: ComputeSim = self.google.sim
        if is_light:
            self.market = adapter(self.google)
        else:
            carrier = Carrier(lambda asked: self.sim.handle(asked, self.loop.clock()))
            self.market = GcpCompute(ANONYMOUS, project=PROJECT, base_url="http://127.0.0.1:1", carrier=carrier)

    def said(self, say: Say) -> str:
        try:
            return repr(say(self.market))
        except DumontError as error:
            return WHERE.sub("", f"{type(error).__name__} {error} {error.__dict__.get('provider_id')}")

    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self.sim.tick(START + timedelta(seconds=self.loop.now))


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    pair = Side(is_light=True), Side(is_light=False)
    yield pair
    pair[1].market.close()


def test_both_say_the_same_of_a_standbys_whole_life(sides: tuple[Side, Side]) -> None:
    offer = offers()[0]
    id, other = f"{offer.machine_id}/{LABEL}", f"{offer.machine_id}/{OTHER}"
    steps: list[Say | float | Callable[[Side], object]] = [
        lambda market: market.list(),
        lambda market: market.addresses(),
        lambda market: market.get(id),
        lambda market: market.start(id),
        lambda market: market.destroy(id),
        lambda market: market.release(ADDRESS, REGION),
        lambda market: market.reserve(ADDRESS, REGION),
        10.0,
        lambda market: market.reserve(ADDRESS, REGION),
        lambda market: market.create(offer, launch_of(LABEL, address="198.51.100.7")),
        lambda market: market.create(offer, launch_of(LABEL)),
        lambda market: market.create(offer, launch_of(LABEL)),
        lambda market: market.get(id),
        10.0,
        lambda market: market.list(),
        lambda market: market.operations(id),
        lambda market: market.operation("zones/nowhere/operations/none"),
        _preempted,
        40.0,
        lambda market: market.list(),
        lambda market: [(one.kind, one.is_done) for one in market.operations(id)],
        lambda market: market.detach(id).partition("/operations/")[0],
        lambda market: market.start(id).partition("/operations/")[0],
        10.0,
        _out_of_room,
        lambda market: market.create(offer, launch_of(OTHER)),
        10.0,
        lambda market: market.get(other),
        lambda market: [(one.kind, type(one.refusal)) for one in market.operations(other)],
        _out_of_quota,
        lambda market: market.create(offer, launch_of(OTHER[:-1] + "1")),
        lambda market: market.release(ADDRESS, REGION),
        _unreachable,
        lambda market: market.list(),
        lambda market: market.destroy(id),
        20.0,
        lambda market: market.get(id),
        lambda market: market.destroy(id),
        lambda market: market.addresses(),
    ]
    light, full = sides
    for number, step in enumerate(steps):
        if isinstance(step, float):
            light.pass_time(step)
            full.pass_time(step)
        elif getattr(step, "is_fault", False):
            step(light)
            step(full)
        else:
            assert light.said(step) == full.said(step), number


def _fault(do: Callable[[Side], object]) -> Callable[[Side], object]:
    do.is_fault = True  # type: ignore[attr-defined]
    return do


@_fault
def _preempted(side: Side) -> None:
    side.sim.preempt(LABEL, side.loop.clock())


@_fault
def _out_of_room(side: Side) -> None:
    for zone in {offer.machine_id for offer in offers()}:
        side.sim.stockout(zone, side.loop.clock() + timedelta(hours=1))


@_fault
def _out_of_quota(side: Side) -> None:
    side.sim.quota(0)


@_fault
def _unreachable(side: Side) -> None:
    side.sim.unreachable = {vm.zone for vm in side.sim.contracts()}
