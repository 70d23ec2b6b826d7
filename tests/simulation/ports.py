"""Between the product and the world: every call of a port takes time, and may go wrong in every way a call can."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from greenlet import getcurrent

from common.domain.offer import Offer, Wanted
from common.errors import DumontError, MarketSilent, ObjectStoreError, StoreError, StoreUnavailable, Throttled
from common.ports import (
    MAX_QUERY_LIMIT,
    Address,
    Charge,
    Data,
    Doc,
    Launch,
    Listed,
    Operation,
    Store,
    Stored,
    Where,
    Write,
)
from tests.simulation.clock import Killed, Loop, Task
from tests.simulation.faults import Faults
from tests.simulation.objects import Bucket

T = TypeVar("T")

LATENCY_S = {
    "store": (0.004, 0.03),
    "market": (0.1, 0.5),
    "objects": (0.02, 0.2),
    "mail": (0.05, 0.5),
    "chat": (0.05, 0.5),
}
GIVES_UP_AFTER_S = {"store": 10.0, "market": 30.0, "objects": 30.0, "mail": 10.0, "chat": 5.0}
HOT_S = 1.0
STALE_S = 60.0


@dataclass
class Reach:
    """Until when the control plane does not reach what: the network's partitions."""

    cut_until: dict[str, float] = field(default_factory=dict)


@dataclass
class Gate:
    """The one way out of an invocation. Calls are numbered; each number is one effect of the sweep."""

    loop: Loop
    faults: Faults
    phases: Callable[[str], set[str]]
    """The phases of the instances that a text is about: a label, a key, a document's id; '' = all."""
    rng: random.Random
    later: Callable[[float, Callable[[], Any]], None]
    """At a time, or when the faults stop."""
    reach: Reach = field(default_factory=Reach)
    calls: int = 0
    kills: int = 0
    trace: list[str] | None = None

    def call(
        self,
        port: str,
        verb: str,
        do: Callable[[], T],
        *,
        about: str,
        mutates: bool,
        unknown: Callable[[str], DumontError],
        refused: Callable[[str], DumontError] | None = None,
        again: Callable[[], object] | None = None,
    ) -> T:
        """One call; `again` = what a proxy repeats of it. Outside of a task (set-up, oracles) nothing happens to it."""
        task = getcurrent()
        if not isinstance(task, Task):
            return do()
        number, self.calls = self.calls, self.calls + 1
        if self.trace is not None:
            self.trace.append(f"{number} {port}.{verb} {about}")
        doomed = self.faults.at_call(number)
        least, most = LATENCY_S[port]
        self.loop.sleep(least + (most - least) * self.rng.random())
        if not doomed:
            if self._is_cut_off(port):
                self._give_up(port, unknown)
            return do()
        strike = self._striker(about, number, doomed)
        self._die(strike, "before")
        if strike("pause"):
            self.loop.sleep(self._length)
        self._refuse(port, strike, unknown, refused, mutates=mutates)
        if mutates and strike(f"{port}_late"):
            self.later(self.loop.now + self._length, lambda: _in_vain(do))
            self._give_up(port, unknown)
        answer = self._do(port, do, again or do, strike, mutates=mutates)
        if strike(_LOST[port]) if mutates or port != "store" else False:
            self._give_up(port, unknown)
        self._die(strike, "after")
        return answer

    def _striker(self, about: str, number: int, doomed: Collection[str]) -> Callable[[str], bool]:
        def strike(knob: str) -> bool:
            if knob not in doomed:
                return False
            struck = self.faults.strike(knob, lambda: self.phases(about), number)
            if struck:
                self._length = struck.length_s()
            return struck is not None

        return strike

    def _is_cut_off(self, port: str) -> bool:
        return self.reach.cut_until.get(port, 0.0) > self.loop.now

    def _die(self, strike: Callable[[str], bool], when: str) -> None:
        if strike(f"kill_{when}"):
            self.kills += 1
            raise Killed(when)
        if strike(f"vanish_{when}"):
            self.kills += 1
            self.loop.vanish()

    def _refuse(
        self,
        port: str,
        strike: Callable[[str], bool],
        unknown: Callable[[str], DumontError],
        refused: Callable[[str], DumontError] | None,
        *,
        mutates: bool,
    ) -> None:
        if self._is_cut_off(port) or strike(_UNREACHABLE[port]):
            self._give_up(port, unknown)
        if refused and strike(f"{port}_throttled"):
            raise refused("throttled")
        if port == "store" and mutates and strike("store_aborts"):
            raise unknown("contention")

    def _give_up(self, port: str, unknown: Callable[[str], DumontError]) -> None:
        self.loop.sleep(GIVES_UP_AFTER_S[port])
        raise unknown("no answer")

    def _do(
        self,
        port: str,
        do: Callable[[], T],
        again: Callable[[], object],
        strike: Callable[[str], bool],
        *,
        mutates: bool,
    ) -> T:
        answer = do()
        if not mutates:
            return answer
        if port == "store" and strike("store_retried"):
            return do()  # the library's second try meets the first one: its answer is what the caller hears
        if port != "store" and strike(_TWICE[port]):
            _in_vain(again)
        return answer


_LOST = {
    "store": "store_commit_unknown",
    "market": "market_lost_reply",
    "objects": "objects_lost_reply",
    "mail": "mail_lost_reply",
    "chat": "chat_lost_reply",
}
_UNREACHABLE = {
    "store": "store_unreachable",
    "market": "market_unreachable",
    "objects": "objects_throttled",
    "mail": "mail_unreachable",
    "chat": "chat_unreachable",
}
_TWICE = {"market": "market_retried", "objects": "objects_twice", "mail": "mail_twice", "chat": "chat_twice"}


def _in_vain(do: Callable[[], Any]) -> None:
    """Nobody hears how it ends."""
    try:
        do()
    except DumontError:
        return


class Target(NamedTuple):
    collection: str
    id: str


class FaultyStore:
    """`ports.Store`."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self.inner, self._gate = store, gate
        self._written_at: dict[tuple[str, str], float] = {}

    def get(self, collection: str, id: str) -> Doc | None:
        return self._read("get", f"{collection}/{id}", lambda: self.inner.get(collection, id))

    def query(
        self,
        collection: str,
        where: Sequence[Where] = (),
        *,
        order_by: str | None = None,
        newest_first: bool = False,
        limit: int = MAX_QUERY_LIMIT,
        start_after: str | None = None,
    ) -> list[Doc]:
        about = "".join(str(value) for _, _, value in where if isinstance(value, str))
        return self._read(
            "query",
            about and f"{collection}/{about}",
            lambda: self.inner.query(
                collection, where, order_by=order_by, newest_first=newest_first, limit=limit, start_after=start_after
            ),
        )

    def create(self, collection: str, id: str, data: Data) -> Doc:
        return self.write("create", [Target(collection, id)], lambda: self.inner.create(collection, id, data))

    def cas(self, doc: Doc, data: Data) -> Doc:
        return self.write("cas", [doc], lambda: self.inner.cas(doc, data))

    def delete(self, doc: Doc) -> None:
        self.write("delete", [doc], lambda: self.inner.delete(doc))

    def commit(self, writes: Sequence[Write]) -> None:
        self.write("commit", [getattr(write, "doc", write) for write in writes], lambda: self.inner.commit(writes))

    def put(self, collection: str, id: str, data: Data) -> None:
        self.write("put", [Target(collection, id)], lambda: self.inner.put(collection, id, data))

    def increment(self, collection: str, id: str, amounts: Mapping[str, int]) -> None:
        self.write("increment", [Target(collection, id)], lambda: self.inner.increment(collection, id, amounts))

    def append(self, collection: str, data: Data) -> Doc:
        return self.write("append", [Target(collection, "")], lambda: self.inner.append(collection, data))

    def _read(self, verb: str, about: str, do: Callable[[], T]) -> T:
        return self._gate.call("store", verb, do, about=about, mutates=False, unknown=StoreUnavailable)

    def write(self, verb: str, documents: Sequence[Any], do: Callable[[], T]) -> T:
        """`documents`: whatever names a collection and an id."""
        targets = [(document.collection, document.id) for document in documents]
        about = " ".join(f"{collection}/{id}" for collection, id in targets)

        def written() -> T:
            self._refuse_hot(targets, about)
            return do()

        return self._gate.call("store", verb, written, about=about, mutates=True, unknown=StoreUnavailable)

    def _refuse_hot(self, targets: Sequence[tuple[str, str]], about: str) -> None:
        """A document takes about one write a second for long; more are refused now and then."""
        gate, now = self._gate, self._gate.loop.now
        if not isinstance(getcurrent(), Task):
            return  # nobody of the product: the world itself writes
        hot = any(now - self._written_at.get(target, -HOT_S) < HOT_S for target in targets)
        if hot and gate.faults.strike("store_hot", lambda: gate.phases(about)):
            raise StoreUnavailable("resource exhausted")
        self._written_at.update(dict.fromkeys(targets, now))


class FaultyMarket:
    """`ports.Market`. What the vendor answers is another matter: see `market`."""

    def __init__(self, market: Any, gate: Gate) -> None:
        self._market, self._gate = market, gate
        self.name, self.limits = market.name, market.limits
        self.about: Callable[[str], str] = lambda provider_id: provider_id
        """A provider's id -> its label."""
        self.create_again: Callable[[], object] = lambda: None
        """The last create's own request, delivered once more: a create makes other calls besides."""
        self.longest_silence_s = self._listed_at = 0.0
        """Between two listings that were answered."""

    def search(self, wanted: Wanted) -> list[Offer]:
        return self._call("search", "", lambda: self._market.search(wanted), mutates=False)

    def create(self, offer: Offer, launch: Launch) -> str:
        return self._call(
            "create", launch.label, lambda: self._market.create(offer, launch), mutates=True, again=self.create_again
        )

    def list(self) -> Sequence[Listed]:
        rows = self._call("list", "", self._market.list, mutates=False)
        now = self._gate.loop.now
        self.longest_silence_s, self._listed_at = max(self.longest_silence_s, now - self._listed_at), now
        return rows

    def get(self, provider_id: str) -> Listed | None:
        return self._call("get", self.about(provider_id), lambda: self._market.get(provider_id), mutates=False)

    def destroy(self, provider_id: str) -> bool:
        return self._call("destroy", self.about(provider_id), lambda: self._market.destroy(provider_id), mutates=True)

    def credit_usd(self) -> str | None:
        return self._call("credit_usd", "", self._market.credit_usd, mutates=False)

    def charges(self, since: datetime, until: datetime) -> Sequence[Charge] | None:
        return self._call("charges", "", lambda: self._market.charges(since, until), mutates=False)

    def _call(
        self, verb: str, about: str, do: Callable[[], T], *, mutates: bool, again: Callable[[], object] | None = None
    ) -> T:
        task = getcurrent()
        failed = task.facts.setdefault("failed_reads", set()) if isinstance(task, Task) else set()
        name = f"{self.name} {verb} {about}"
        failed.add(name)
        answer = self._gate.call(
            "market",
            verb,
            do,
            about=about,
            mutates=mutates,
            unknown=MarketSilent,
            refused=lambda why: Throttled(why, 5.0),
            again=again,
        )
        failed.discard(name)
        return answer


class FaultyAnnouncer(FaultyMarket):
    """`ports.Announcing` besides."""

    def __init__(self, market: Any, gate: Gate) -> None:
        super().__init__(market, gate)
        self.subscribe, self.unsubscribe = market.subscribe, market.unsubscribe
        self.subscriptions, self.event = market.subscriptions, market.event


class FaultyStandbys(FaultyMarket):
    """`ports.Standbys`."""

    def start(self, provider_id: str) -> str:
        return self._changed("start", provider_id, lambda: self._market.start(provider_id))

    def detach(self, provider_id: str) -> str:
        return self._changed("detach", provider_id, lambda: self._market.detach(provider_id))

    def operation(self, name: str) -> Operation | None:
        return self._call("operation", "", lambda: self._market.operation(name), mutates=False)

    def operations(self, provider_id: str) -> Sequence[Operation]:
        about = self.about(provider_id)
        return self._call("operations", about, lambda: self._market.operations(provider_id), mutates=False)

    def reserve(self, name: str, region: str) -> Address:
        return self._changed("reserve", name, lambda: self._market.reserve(name, region))

    def release(self, name: str, region: str) -> bool:
        return self._changed("release", name, lambda: self._market.release(name, region))

    def addresses(self) -> Sequence[Address]:
        return self._call("addresses", "", self._market.addresses, mutates=False)

    def _changed(self, verb: str, what: str, do: Callable[[], T]) -> T:
        return self._call(verb, self.about(what) or what, do, mutates=True)


class FaultyObjects:
    """`ports.ObjectStore`."""

    def __init__(self, objects: Bucket, gate: Gate) -> None:
        self._objects, self._gate = objects, gate

    def get(self, key: str) -> bytes:
        return self._call("get", key, lambda: self._objects.get(key))

    def read(self, key: str) -> Iterator[bytes]:
        return iter(self._call("read", key, lambda: list(self._objects.read(key))))

    def list(self, prefix: str) -> Iterator[Stored]:
        return iter(self._call("list", prefix, lambda: self._listed(prefix)))

    def _listed(self, prefix: str) -> list[Stored]:
        gate = self._gate
        stale = gate.faults.strike("objects_stale_list", lambda: gate.phases(prefix))
        bare = gate.faults.strike("objects_no_md5", lambda: gate.phases(prefix))
        listed = list(self._objects.list(prefix, hides_newest_s=STALE_S if stale else 0.0))
        return [replace(stored, md5=None) for stored in listed] if bare else listed

    def put(self, key: str, data: bytes) -> None:
        self._call("put", key, lambda: self._objects.put(key, data), mutates=True)

    def put_file(self, key: str, path: str) -> None:
        self._call("put_file", key, lambda: self._objects.put_file(key, path), mutates=True)

    def delete(self, keys: Sequence[str]) -> None:
        self._call("delete", keys[0] if keys else "", lambda: self._objects.delete(keys), mutates=True)

    def presign_get(self, key: str, expires_s: int) -> str:
        """Computed here, not called."""
        return self._objects.presign_get(key, expires_s)

    def presign_put(self, key: str, size_bytes: int, expires_s: int) -> str:
        return self._objects.presign_put(key, size_bytes, expires_s)

    def _call(self, verb: str, key: str, do: Callable[[], T], *, mutates: bool = False) -> T:
        return self._gate.call("objects", verb, do, about=key, mutates=mutates, unknown=ObjectStoreError)


__all__ = ["FaultyAnnouncer", "FaultyMarket", "FaultyObjects", "FaultyStore", "Gate", "Reach", "StoreError"]
