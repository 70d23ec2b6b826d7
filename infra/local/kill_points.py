"""Kills the control plane at named points: the ports are wrapped, the product knows nothing of it.

A point is `<what>:<before|after>`. What is a call of a port (`market.create`, `market.destroy`, `objects.list`) or a
commit that writes a record's state or phase (`rental.serving`, `instance.freezing`, `ledger`). Each point fires once
per state directory: it is written down before the process is killed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.ports import App, Cas, Create

FIRED = "killed.txt"
STATES = {"rentals": ("rental", "state"), "instances": ("instance", "phase")}


def wrapped(app: App, points: Sequence[str], state: Path) -> App:
    killer = Killer(points, state / FIRED)
    markets = {
        name: Calls(market, "market", ("create", "destroy", "charges"), killer) for name, market in app.markets.items()
    }
    return dataclasses.replace(
        app,
        store=StoreCalls(app.store, killer),
        markets=markets,
        objects=Calls(app.objects, "objects", ("list",), killer),
    )


class Killer:
    def __init__(self, points: Sequence[str], fired: Path) -> None:
        self._fired = fired
        already = fired.read_text().split() if fired.exists() else []
        self._armed = set(points) - set(already)

    def reach(self, point: str) -> None:
        if point not in self._armed:
            return
        with open(self._fired, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other threads and processes come by here, too
            file.seek(0)
            if point in file.read().split():
                return
            file.write(point + "\n")
            file.flush()
            os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)


class Calls:
    """A port some of whose calls are points; every other attribute is the port's own."""

    def __init__(self, port: Any, name: str, calls: Sequence[str], killer: Killer) -> None:
        self._port, self._name, self._calls, self._killer = port, name, calls, killer

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._port, attribute)
        return self._guarded(f"{self._name}.{attribute}", found) if attribute in self._calls else found

    def _guarded(self, point: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._killer.reach(f"{point}:before")
            answer = call(*args, **kwargs)
            self._killer.reach(f"{point}:after")
            return answer

        return guarded


class StoreCalls(Calls):
    """Writes are named by what they make of a record."""

    def __init__(self, store: Any, killer: Killer) -> None:
        super().__init__(store, "store", (), killer)

    def commit(self, writes: Sequence[Any]) -> None:
        changes = [change for write in writes for change in _changes(write)]
        self._around(changes, lambda: self._port.commit(writes))

    def cas(self, doc: Any, data: Any) -> Any:
        return self._around(_changes(Cas(doc, data)), lambda: self._port.cas(doc, data))

    def _around(self, changes: Sequence[str], write: Callable[[], Any]) -> Any:
        for change in changes:
            self._killer.reach(f"{change}:before")
        answer = write()
        for change in changes:
            self._killer.reach(f"{change}:after")
        return answer


def _changes(write: Any) -> list[str]:
    """`rental.serving` and the like, when the write moves a record to another state; `ledger` of a new entry."""
    if isinstance(write, Create) and write.collection == "ledger":
        return ["ledger"]
    collection = write.doc.collection if isinstance(write, Cas) else getattr(write, "collection", "")
    if collection not in STATES or not isinstance(write, (Cas, Create)):
        return []
    noun, field = STATES[collection]
    before = write.doc.data.get(field) if isinstance(write, Cas) else None
    return [f"{noun}.{write.data[field]}"] if write.data[field] != before else []
