"""One marketplace under test: each adapter over its simulator, in process and over HTTP, on a clock of its own.

A new marketplace is a row of MARKETS.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.domain.offer import Offer, Wanted
from common.errors import (
    OfferGone,
)
from common.ports import Launch, Market
from infra.demo.tensordock import TensorDockSim
from infra.demo.vast import INTERVALS, VastSim
from tests.hand_cranked import SimTransport
from tests.loopback import served

START = datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
RTX_4090 = Wanted(gpu="RTX 4090", disk_gb=64)
KEY = "sim-key"
HOUR = timedelta(hours=1)
MICRO = Decimal("0.000001")
BOOT_S = 20.0
"""No simulated machine takes longer."""
Answers = Callable[[httpx.Request], httpx.Response]


def _vast(limited: bool) -> VastSim:
    return VastSim(rng=random.Random(1), api_key=KEY, intervals=INTERVALS if limited else {})


def _tensordock(limited: bool) -> TensorDockSim:
    limits = {} if limited else {"requests_per_minute": None}
    return TensorDockSim(rng=random.Random(1), api_key=KEY, **limits)


MARKETS: dict[str, tuple[Callable[..., Market], Callable[[bool], Any]]] = {
    "vast": (Vast, _vast),
    "tensordock": (TensorDock, _tensordock),
}


class Rig:
    """One marketplace: the adapter over its simulator, on a clock of its own."""

    def __init__(self, name: str, *, over_http: bool = False, limited: bool = False) -> None:
        self.name, self.now = name, START
        self.adapter, make = MARKETS[name]
        self._more = {"wait": self.after} if self.adapter is Vast else {}
        self.sim = make(limited)
        self._stack = ExitStack()
        self.url = self._serve() if over_http else "http://market.sim"
        self._transport = None if over_http else SimTransport(self)
        self.market = self.with_key(KEY)

    def _serve(self) -> str:
        return self._stack.enter_context(served(self.sim, lambda: self.now))

    def with_key(self, key: str) -> Market:
        return self._made(key, self._transport)

    def answering(self, answers: Answers) -> Market:
        """The adapter of an account whose marketplace answers so."""
        return self._made(KEY, httpx.MockTransport(answers))

    def _made(self, key: str, transport: httpx.BaseTransport | None) -> Market:
        made = self.adapter(key, base_url=self.url, transport=transport, **self._more)
        self._stack.callback(made.close)
        return made

    def rent(self, offer: Offer | None = None, label: str = "one", **more: Any) -> str:
        return self.market.create(offer or self.market.search(RTX_4090)[0], launch_of(label, **more))

    def after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)

    def take(self, offer: Offer) -> None:
        """Somebody else rents what the offer stands for."""
        while True:
            try:
                self.rent(offer, label="somebody-else")
            except OfferGone:
                return

    def close(self) -> None:
        self._stack.close()


def launch_of(label: str, **more: Any) -> Launch:
    return Launch(label=label, image="i", disk_gb=64, env={"A": "it's b"}, start_script="echo up\n", **more)


@pytest.fixture(params=[*MARKETS, *(f"{name} over http" for name in MARKETS)])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    name, _, over_http = request.param.partition(" ")
    made = Rig(name, over_http=bool(over_http))
    yield made
    made.close()


@pytest.fixture(params=MARKETS)
def alone(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(request.param)
    yield made
    made.close()
