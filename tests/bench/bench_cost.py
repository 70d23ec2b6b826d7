"""What a host and an idle deployment cost a month: operations counted in a running world, times the table of prices.

Run: make bench-cost. HOSTS instances run for MINUTES at the production's waiting times, on a clock that is turned by
hand: the real store, functions' handlers, jobs, agents and snapshots, against the simulated market. The last line of
stdout is JSON: {"usd_per_host_month": x, "usd_fixed_month": y, "per_host_day": {...}, ...}.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from common.adapters.s3 import S3
from common.config import Timing
from common.domain.liveness import FLUSH_PART
from common.ports import Data, Delete, Doc, Store, Where, Write
from common.topology import function
from infra.demo.s3_server import s3_server
from infra.deploy import cost
from infra.deploy.cost import Load, Prices
from tests.hand_cranked import Control, World

HOSTS = 20
MINUTES = 60
"""Four periods of snapshots and one pass over everything, so that those are in it."""
AT_HOSTS = 1000
GPUS = ("RTX 3090", "RTX 4090", "RTX 5090", "A100 PCIE")
SECONDS_PER_DAY = Decimal(86_400)


class Counting:
    """A store that counts what Firestore bills; a query that finds nothing is one read."""

    def __init__(self, store: Store) -> None:
        self._store, self.counts = store, Counter[str]()

    def get(self, collection: str, id: str) -> Doc | None:
        self._count("reads", collection)
        return self._store.get(collection, id)

    def query(self, collection: str, where: Sequence[Where] = (), **more: Any) -> list[Doc]:
        found = self._store.query(collection, where, **more)
        self._count("reads", collection, max(1, len(found)) + (more.get("start_after") is not None))
        return found

    def create(self, collection: str, id: str, data: Data) -> Doc:
        self._count("writes", collection)
        return self._store.create(collection, id, data)

    def cas(self, doc: Doc, data: Data) -> Doc:
        self._count("writes", doc.collection)
        return self._store.cas(doc, data)

    def put(self, collection: str, id: str, data: Data) -> None:
        self._count("writes", collection)
        self._store.put(collection, id, data)

    def increment(self, collection: str, id: str, amounts: Any) -> None:
        self._count("writes", collection)
        self._store.increment(collection, id, amounts)

    def append(self, collection: str, data: Data) -> Doc:
        self._count("writes", collection)
        return self._store.append(collection, data)

    def delete(self, doc: Doc) -> None:
        self._count("deletes", doc.collection)
        self._store.delete(doc)

    def commit(self, writes: Sequence[Write]) -> None:
        """A check is a write that changes nothing, and is billed as one."""
        for write in writes:
            collection = write.collection if hasattr(write, "collection") else write.doc.collection
            self._count("deletes" if isinstance(write, Delete) else "writes", collection)
        self._store.commit(writes)

    def close(self) -> None:
        self._store.close()  # type: ignore[attr-defined]

    def _count(self, what: str, collection: str, number: int = 1) -> None:
        self.counts[what] += number
        self.counts[f"{what} of {collection}"] += number


class CountedControl(Control):
    """The server's own count of the hosts' calls, and how long they take."""

    counts: Counter[str]

    def beat(self, heartbeat: Any, token: str) -> Any:
        self.counts["heartbeats"] += 1
        return super().beat(heartbeat, token)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "store") as server:
        busy = run(Path(folder) / "busy", server, HOSTS)
        idle = run(Path(folder) / "idle", server, 0)
    hosts_only = at_scale(per_host_day(busy, idle))
    result: dict[str, Any] = {
        "hosts": HOSTS,
        "minutes": MINUTES,
        "per_host_day": {name: float(round(value, 1)) for name, value in dataclasses.asdict(hosts_only).items()},
    }
    for name, prices in (("", cost.REGIONAL), ("_multi_regional", cost.MULTI_REGIONAL)):
        result[f"usd_per_host_month{name}"] = float(round(per_host_month(hosts_only, prices), 4))
        result[f"usd_fixed_month{name}"] = float(round(fixed_month(idle, prices), 2))
    print(
        f"shared concurrency: {cost.shared.__doc__}\nwrites of what processes heard: "
        f"{cost.flushes_per_host_day.__doc__}\nprices as of {cost.PRICES_AS_OF}, no free tier; host's share of "
        f"an instance at {AT_HOSTS} hosts; most counted: {busy.most_common(16)}",
        file=sys.stderr,
    )
    print(json.dumps(result))


def run(folder: Path, server: Any, hosts: int) -> Counter[str]:
    """Counts of MINUTES with so many running instances."""
    folder.mkdir()
    objects = S3(
        endpoint=server.endpoint,
        bucket=server.bucket,
        key_id=server.access_key,
        secret=server.secret_key,
        region="us-east-1",
    )
    world = World(folder, server, objects)
    try:
        ids = [world.provision(gpu=GPUS[number % len(GPUS)], strategy="coldstart") for number in range(hosts)]
        if ids:
            world.until(lambda: all(world.show(id).state == "running" for id in ids), within_s=3600)
            world.pass_time(120)
        store = Counting(world.store)
        world.app = dataclasses.replace(world.app, store=store)
        for machine in world.machines.values():
            control = CountedControl(world, machine.agent.label)
            control.counts = store.counts
            machine.agent.control = control
        began = time.perf_counter()
        world.pass_time(MINUTES * 60)
        print(f"{hosts} hosts, {MINUTES} minutes, in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        counts = store.counts.copy()
        assert all(world.show(id).state == "running" for id in ids)
        return counts
    finally:
        world.close()
        objects.close()


def per_host_day(busy: Counter[str], idle: Counter[str]) -> Load:
    """What a host adds, heartbeats and its part of the jobs alike; without the writes that processes make for all."""
    factor = SECONDS_PER_DAY / (MINUTES * 60) / HOSTS
    own = busy - Counter({"writes": busy["writes of seen"]})
    added = {name: (own[name] - idle[name]) * factor for name in ("reads", "writes", "deletes")}
    requests = busy["heartbeats"] * factor
    return Load(**added, requests=requests, busy_s=requests * cost.BILLED_STEP_S)


def at_scale(day: Load) -> Load:
    """With its part of the writes that processes make for AT_HOSTS hosts."""
    flushes = cost.flushes_per_host_day(
        calls_per_s=day.requests * AT_HOSTS / SECONDS_PER_DAY,
        call_s=cost.BILLED_STEP_S,
        flush_s=Decimal(str(Timing().silent_after_s * FLUSH_PART)),
        hosts=AT_HOSTS,
    )
    return dataclasses.replace(day, writes=day.writes + flushes)


def per_host_month(day: Load, prices: Prices) -> Decimal:
    """One of AT_HOSTS hosts: their calls share instances as far as they overlap."""
    row = function("heartbeat")
    calls_per_s = day.requests * AT_HOSTS / SECONDS_PER_DAY
    busy_s = cost.shared(day.busy_s, calls_per_s=calls_per_s, call_s=cost.BILLED_STEP_S, concurrency=row.concurrency)
    size = {"cpu": Decimal(row.cpu), "memory_gib": Decimal(row.memory_mb) / 1024}
    return cost.usd_per_month(dataclasses.replace(day, busy_s=busy_s), prices, **size)


def fixed_month(idle: Counter[str], prices: Prices) -> Decimal:
    """Without a host: the schedules and what they read, and the secrets."""
    factor = SECONDS_PER_DAY / (MINUTES * 60)
    counted = Load(**{name: idle[name] * factor for name in ("reads", "writes", "deletes")})
    runs = dataclasses.replace(
        cost.JOB_RUN, reads=Decimal(0), writes=Decimal(1)
    )  # the rest is counted; the note of its run is written outside of it
    from common.topology import SCHEDULES

    each = {schedule.name: runs for schedule in SCHEDULES if schedule.name not in cost.RUNS}
    store = cost.usd_per_month(counted, prices, cpu=Decimal(0), memory_gib=Decimal(0))
    return cost.fixed_usd_per_month(prices, runs=each) + store


if __name__ == "__main__":
    main()
