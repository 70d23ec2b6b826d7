"""Where a marketplace's answers look otherwise than those of its simulator, on which everything else is tested."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.domain.health import Finding, ok, warning
from common.domain.offer import Wanted
from common.domain.shape import AnswerShape, Shape, call_of, differences, joined, shape_of
from common.ports import Announcing, Launch, Market, Told
from infra.demo.tensordock import TensorDockSim
from infra.demo.vast import VastSim
from infra.demo.wire import Marketplace, Request

GPUS = {"vast": "RTX 4090", "tensordock": "RTX A6000"}
DISK_GB = 100
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LOOKS = 8
"""At a machine that boots, UP_STEP_S apart: its answers change on the way."""
UP_STEP_S = 30.0


def compared(market: str, seen: Sequence[AnswerShape]) -> Iterator[Finding]:
    """`seen` = what the deployment has noted; those of other markets are left out."""
    check, ours = f"answers of {market}", simulated(market)
    theirs = {row.call: row.shape for row in seen if row.market == market}
    mend = "read the vendor's changelog; teach infra/demo what is new, and the adapter what it must understand"
    if not theirs:
        yield warning(check, "none was noted", "see that the functions may write to the store")
        return
    differing = 0
    for call, shape in sorted(theirs.items()):
        lines = differences(shape, ours[call]) if call in ours else ["the simulator is never asked this"]
        differing += bool(lines)
        if lines:
            yield warning(f"{check}: {call}", "\n        ".join(lines), mend)
    if not differing:
        yield ok(check, f"{len(theirs)} calls answered as the simulator does: {', '.join(sorted(theirs))}")


def simulated(market: str) -> dict[str, Shape]:
    """What the simulator answers to every call of the adapter, from the first search to the bill."""
    seen: dict[str, list[Shape]] = defaultdict(list)

    def told(method: str, path: str, answer: Any) -> None:
        seen[call_of(method, path)].append(shape_of(answer))

    world = _World(market)
    _live(world.market(told), world)
    return {call: joined(shapes) for call, shapes in seen.items()}


class _World(httpx.BaseTransport):
    """One simulator, and the clock that it is asked by."""

    def __init__(self, name: str) -> None:
        self.name, self.now = name, BEGAN
        rng = random.Random(1)
        self.sim: Marketplace = (
            VastSim(rng=rng, api_key="k", intervals={}) if name == "vast" else TensorDockSim(rng=rng, api_key="k")
        )

    def market(self, told: Told) -> Market:
        if self.name == "vast":
            return Vast("k", base_url="http://vast.sim", transport=self, wait=self.wait, told=told)
        return TensorDock("k", base_url="http://dock.sim", transport=self, told=told)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.sim.tick(self.now)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = Request(
            method=request.method,
            path=request.url.path,
            query=dict(request.url.params),
            headers=dict(request.headers),
            body=request.read(),
        )
        answer = self.sim.handle(asked, self.now)
        return httpx.Response(answer.status, headers={"content-type": answer.content_type}, content=answer.body)


def _live(market: Market, world: _World) -> None:
    """One machine's life, and everything else that the product ever asks."""
    market.credit_usd()
    market.survey(GPUS[market.name])
    offer = market.search(Wanted(gpu=GPUS[market.name], disk_gb=DISK_GB))[0]
    launch = Launch(label="dumont-a-b-1-00000000", image="i", disk_gb=DISK_GB, env={"A": "b"}, start_script="true")
    id = market.create(offer, launch)
    for _ in range(LOOKS):
        market.list()
        market.get(id)
        world.wait(UP_STEP_S)
    market.destroy(id)
    world.wait(UP_STEP_S)
    market.list()
    market.get(id)
    market.charges(BEGAN, world.now)
    if isinstance(market, Announcing):
        made = market.subscribe("https://example.com/failover/vast")
        market.subscriptions()
        market.unsubscribe(made.id)
