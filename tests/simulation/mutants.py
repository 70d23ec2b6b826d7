"""Planted bugs: each replaces one product function by what a hurried hand might have written. All must be caught.

The names are the product's own, by import path; a test fails when one no longer exists. No product code knows of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from common.domain.idle import Sample, idle_since
from common.domain.instance import Phase
from common.domain.ledger import LedgerEntry
from common.domain.rental import RentalState
from common.errors import MarketError, MarketUnknown, ObjectStoreError, Stale
from common.host.agent import Agent
from common.ports import App, Cas, Doc, Write
from common.records import Kept, World, read
from common.snapshots.verify import Verified, load_manifest
from common.workflows import deploy, failover, lifecycle, rentals, restore, settle, sweep

Replacement = Callable[[Any], Any]
"""The original -> the broken one."""


@dataclass(frozen=True)
class Mutant:
    name: str
    target: str
    """`module.function` or `module.Class.method`."""
    broken: Replacement
    why: str
    """The rule that it breaks."""
    stirred: frozenset[str] = frozenset()
    """Knobs that are on in each of its seeds: without them the rule is needed too rarely for a short run."""

    def place(self) -> tuple[Any, str]:
        """The object that holds the function, and its name there; raises AttributeError when it is gone."""
        path, _, attribute = self.target.rpartition(".")
        try:
            holder: Any = importlib.import_module(path)
        except ModuleNotFoundError:
            module, _, holder_name = path.rpartition(".")
            holder = getattr(importlib.import_module(module), holder_name)
        getattr(holder, attribute)
        return holder, attribute

    def plant(self) -> None:
        """In this process, for good; the lifecycle's table holds functions, so there too."""
        holder, attribute = self.place()
        original = getattr(holder, attribute)
        broken = self.broken(original)
        setattr(holder, attribute, broken)
        steps = {
            phase: tuple(broken if step is original else step for step in row) for phase, row in lifecycle.STEPS.items()
        }
        setattr(lifecycle, "STEPS", steps)  # noqa: B010 - a constant to everyone but a mutant


class Blind:
    """A store without guards: whatever was read, the version of the moment is replaced."""

    def __init__(self, store: Any) -> None:
        self._faulty = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._faulty, name)

    def cas(self, doc: Doc, data: Any) -> Doc:
        raw = self._faulty.inner
        return self._faulty.write("cas", [doc], lambda: raw.cas(raw.get(doc.collection, doc.id) or doc, data))

    def commit(self, writes: Sequence[Write]) -> None:
        raw = self._faulty.inner

        def fresh(write: Write) -> Write:
            if not isinstance(write, Cas):
                return write
            return Cas(raw.get(write.doc.collection, write.doc.id) or write.doc, write.data)

        targets = [getattr(write, "doc", write) for write in writes]
        self._faulty.write("commit", targets, lambda: raw.commit([fresh(write) for write in writes]))


def _unguarded(original: Any) -> Any:
    def step(app: App, *args: Any, **kwargs: Any) -> Any:
        return original(replace(app, store=Blind(app.store)), *args, **kwargs)

    return step


def _constant(value: Any) -> Replacement:
    return lambda _original: lambda *_args, **_kwargs: value


# --- what is created and destroyed


def _create_unannounced(original: Any) -> Any:
    def create(app: App, place: Any, kept: Any, instance: Any, now: Any) -> None:
        launch = rentals._launch(app, kept.value, instance, now)
        id = place.create(kept.value.offer, launch)
        called = kept.value.model_copy(update={"create_called_at": now, "provider_id": id})
        app.store.cas(kept.doc, rentals.dump(called))

    return create


def _create_again(original: Any) -> Any:
    class Insists:
        def __init__(self, market: Any) -> None:
            self._market = market

        def __getattr__(self, name: str) -> Any:
            return getattr(self._market, name)

        def create(self, offer: Any, launch: Any) -> str:
            for other in [offer, *self._market.search(deploy.Wanted(gpu=offer.gpu))]:
                try:
                    return str(self._market.create(other, launch))
                except MarketUnknown:
                    continue
            raise MarketUnknown("tried all")

    def create(app: App, place: Any, kept: Any, instance: Any, now: Any) -> None:
        original(app, replace(place, market=Insists(place.market)), kept, instance, now)

    return create


def _read_then_list(original: Any) -> Any:
    def run(app: App, now: Any) -> Any:
        """Orphans judged by records that were read before the listing."""
        summary = sweep.Summary()
        for market in app.markets.values():
            known = {
                doc.id: Kept(doc, sweep.Rental.model_validate(doc.data))
                for doc in app.store.query("rentals", [("settled", "==", False)])
            }
            try:
                rows = market.list()
            except MarketError:
                continue
            for label, row in sweep._ours(app, rows, summary).items():
                kept = known.get(label)
                if kept is None or not kept.value.is_live:
                    market.destroy(row.provider_id)
        return original(app, now)

    return run


def _orphan_by_writer(original: Any) -> Any:
    def destroy(app: App, listed: Any, summary: Any, now: Any) -> None:
        for label, row in listed.items():
            kept = read(app, "rentals", label, sweep.Rental)
            instance = read(app, "instances", kept.value.instance_key, deploy.Instance) if kept else None
            if kept and instance and instance.value.writer != label:
                app.markets[kept.value.provider].destroy(row.provider_id)

    return destroy


def _destroy_once(original: Any) -> Any:
    def destroy(app: App, kept: Any, provider_id: str, now: Any) -> None:
        if kept.value.destroy_called_at is None:
            original(app, kept, provider_id, now)

    return destroy


def _lost_at_once(original: Any) -> Any:
    def absent(app: App, market: Any, rental: Any, host: Any, now: Any) -> Any:
        return sweep._lost(rental, "gone", host, now, beat_s=60.0, both=True)

    return absent


def _lost_by_silence(original: Any) -> Any:
    def judged(app: App, rental: Any, row: Any, host: Any, now: Any) -> Any:
        if row is not None and rental.state is RentalState.SERVING and sweep._is_silent(app, rental, host, now):
            return sweep._lost(rental, "gone", host, now, beat_s=60.0)
        return original(app, rental, row, host, now)

    return judged


def _unknown_is_absent(original: Any) -> Any:
    class Optimist:
        def __init__(self, market: Any) -> None:
            self._market = market

        def __getattr__(self, name: str) -> Any:
            return getattr(self._market, name)

        def list(self) -> Any:
            try:
                return self._market.list()
            except MarketError:
                return []

        def get(self, id: str) -> Any:
            try:
                return self._market.get(id)
            except MarketError:
                return None

    def run(app: App, now: Any) -> Any:
        return original(replace(app, markets={name: Optimist(m) for name, m in app.markets.items()}), now)

    return run


# --- races, freezes and the pointer


def _losers_kept(original: Any) -> Any:
    def retire(kept: Any, *, now: Any, why: str) -> Any:
        return [] if why == "lost the race" else original(kept, now=now, why=why)

    return retire


def _race_in_two_commits(original: Any) -> Any:
    class Split:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def commit(self, writes: Any) -> None:
            self._store.commit(writes[:2])
            for write in writes[2:]:
                self._store.commit([write])

    return lambda app, world, now: original(replace(app, store=Split(app.store)), world, now)


def _freeze_releases(original: Any) -> Any:
    def freeze(app: App, world: World, now: Any) -> bool:
        """Destroy before the snapshot is verified."""
        instance = world.instance.value
        if instance.want == "up" or not instance.is_running or world.writer is None:
            return False
        down = instance.to(Phase.FREEZING, at=now).to(Phase.DOWN, at=now)
        down = down.having(writer=None, epoch=instance.epoch + 1)
        app.store.commit([world.instance.becomes(down), *failover.retire([world.writer], now=now, why="down")])
        return True

    return freeze


def _without_proof(original: Any) -> Any:
    def verify(objects: Any, manifest_key: str, *, prefix: str, instance_key: bytes, proven: Any) -> Verified:
        try:
            manifest = load_manifest(objects, manifest_key, instance_key)
        except ObjectStoreError:
            raise
        return Verified("known", tuple(manifest.packs), 0, manifest.version, manifest.files, manifest.bytes, 0, ())

    return verify


class _Everything(set):  # type: ignore[type-arg]
    def __contains__(self, _item: object) -> bool:
        return True


def _final_without_nonce(original: Any) -> Any:
    return lambda instance, report: instance.phase is Phase.FREEZING


def _freeze_by_the_clock(original: Any) -> Any:
    def give_up(app: App, world: World, now: Any) -> bool:
        timing = app.settings.timing.model_copy(update={"dead_man_s": 90.0})
        hurried = replace(app, settings=app.settings.model_copy(update={"timing": timing}))
        silent = replace(world, hosts={})
        return bool(original(hurried, silent, now))

    return give_up


def _falls_back_for_anything(original: Any) -> Any:
    return lambda app, instance, result: True


def _fence_at_once(original: Any) -> Any:
    def fence(app: App, world: World, now: Any) -> bool:
        writer = world.writer
        if writer is None or world.instance.value.want != "up" or not writer.value.provider_id:
            return False
        if world.writer_host and world.writer_host.silent_for_s(now) < 45:
            return False
        held = writer.value.to(RentalState.HELD, at=now)
        failover._commit(
            app, world, failover._without_writer(world.instance.value, now), [writer.becomes(held)], "silent", now
        )
        return True

    return fence


def _leased(original: Any) -> Any:
    """A lease instead of guards: fine until somebody pauses for longer than it lasts."""
    leases: dict[tuple[int, str], Any] = {}

    def advance(app: App, key: str) -> Any:
        held = leases.get((id(app), key))
        if held and app.clock() < held:
            return None
        leases[id(app), key] = app.clock() + timedelta(seconds=60)
        try:
            return original(replace(app, store=Blind(app.store)), key)
        finally:
            leases.pop((id(app), key), None)

    return advance


# --- money, hosts, idleness


def _settle_at_once(original: Any) -> Any:
    def close(app: App, kept: Any, charges: Any, now: Any) -> bool:
        for entry in settle.entries_of(kept.value, charges):
            app.store.put("ledger", entry.id, settle.dump(entry))
        try:
            app.store.cas(kept.doc, settle.dump(kept.value.model_copy(update={"settled": True})))
        except Stale:
            return False
        return True

    return close


def _gone_without_proof(original: Any) -> Any:
    return lambda app, market, rental: False


def _bill_of_ids_alone(original: Any) -> Any:
    return lambda rental, charges: original(rental, [replace(charge, label="") for charge in charges])


def _bill_counted_twice(original: Any) -> Any:
    def entries(rental: Any, charges: Any) -> list[LedgerEntry]:
        return list(original(rental, [*charges, *charges[:1]]))

    return entries


def _bill_stays_closed(original: Any) -> Any:
    def destroy(app: App, kept: Any, provider_id: str, now: Any) -> None:
        if kept.value.settled:
            app.markets[kept.value.provider].destroy(provider_id)
        else:
            original(app, kept, provider_id, now)

    return destroy


def _missing_is_quiet(original: Any) -> Any:
    def since(samples: Any, *, now: Any, sample_every_s: float = 5.0) -> Any:
        seen = [s if s.gpu_percent is not None else Sample(at=s.at, gpu_percent=0.0) for s in samples]
        return idle_since(seen, now=now, sample_every_s=sample_every_s)

    return since


def _idle_without_a_report(original: Any) -> Any:
    def wants(app: App, instance: Any, host: Any, now: Any) -> bool:
        fresh = host.model_copy(update={"last_seen_at": now})
        return bool(original(app, instance, fresh, now))

    return wants


def _keeps_writing(original: Any) -> Any:
    def freeze(self: Agent, nonce: str | None) -> None:
        self._keep(frozen=True, fz=nonce)
        self.phase = self.phase if nonce is None else type(self.phase).FROZEN

    return freeze


def _any_price(original: Any) -> Any:
    def price(value: Any) -> Decimal:
        return Decimal(str(value)) if not isinstance(value, str) else Decimal("NaN")

    return price


def _ended_by_anybody(original: Any) -> Any:
    """The account of the caller is not part of the key: whoever knows the id is served."""

    def world(app: App, key: str) -> Any:
        id = key.partition(".")[2]
        found = [doc.id for active in (True, False) for doc in app.store.query("instances", [("active", "==", active)])]
        return original(app, next((k for k in found if k.partition(".")[2] == id), key))

    return world


MUTANTS: tuple[Mutant, ...] = (
    Mutant("create before the record", "common.workflows.rentals._create", _create_unannounced, "E1"),
    Mutant(
        "create blindly repeated",
        "common.workflows.rentals._create",
        _create_again,
        "E1",
        frozenset({"market_lost_reply"}),
    ),
    Mutant("read, then list", "common.workflows.sweep.run", _read_then_list, "E2"),
    Mutant("orphan = not the writer", "common.workflows.sweep._destroy_orphans", _orphan_by_writer, "E2"),
    Mutant("no orphan sweep", "common.workflows.sweep._destroy_orphans", _constant(None), "E2"),
    Mutant("gives up destroying", "common.workflows.rentals.destroy", _destroy_once, "R8"),
    Mutant("lost after one listing", "common.workflows.sweep._absent", _lost_at_once, "E3"),
    Mutant("lost by silence", "common.workflows.sweep._judged", _lost_by_silence, "E3"),
    Mutant("unknown read as absent", "common.workflows.sweep.run", _unknown_is_absent, "E4"),
    Mutant(
        "gone without a GET",
        "common.workflows.sweep._still_there",
        _gone_without_proof,
        "E3",
        frozenset({"listing_omits", "cut_control"}),
    ),
    Mutant("note of a listing unguarded", "common.workflows.sweep._note", _unguarded, "R7", frozenset({"pause"})),
    Mutant(
        "winner chosen unguarded",
        "common.workflows.deploy.choose_winner",
        _unguarded,
        "C1",
        frozenset({"pause", "flip"}),
    ),
    Mutant("losers not retired", "common.workflows.deploy.retire", _losers_kept, "C1"),
    Mutant(
        "race in two commits",
        "common.workflows.deploy.choose_winner",
        _race_in_two_commits,
        "C1",
        frozenset({"vanish_after", "kill_after", "vanish_before"}),
    ),
    Mutant("left-overs kept", "common.workflows.failover.release_left_over", _constant(False), "H1"),
    Mutant("destroy before verify", "common.workflows.hibernate.freeze", _freeze_releases, "R5"),
    Mutant("pointer before proof", "common.snapshots.engine.verify", _without_proof, "P1"),
    Mutant(
        "content never proven",
        "common.workflows.hibernate._proven",
        _constant(_Everything()),
        "P1",
        frozenset({"objects_no_md5", "upload_garbled"}),
    ),
    Mutant(
        "pointer moved unguarded",
        "common.workflows.hibernate._move_pointer",
        _unguarded,
        "R7",
        frozenset({"pause", "flip", "verb_twice"}),
    ),
    Mutant("freeze without its nonce", "common.workflows.hibernate.is_final", _final_without_nonce, "P4"),
    Mutant("freeze by the clock", "common.workflows.hibernate.give_up_freezing", _freeze_by_the_clock, "P4"),
    Mutant("writers not frozen", "common.host.agent.Agent._freeze", _keeps_writing, "P4"),
    Mutant("failed snapshot forgotten", "common.workflows.hibernate.retry_failed", _constant(False), "L"),
    Mutant("falls back for anything", "common.workflows.restore._manifest_is_bad", _falls_back_for_anything, "R5"),
    Mutant(
        "always discards",
        "common.workflows.terminate.request",
        lambda original: lambda app, world, **more: original(app, world, **{**more, "discard": True}),
        "R5",
    ),
    Mutant("fenced at once", "common.workflows.failover.fence_silent", _fence_at_once, "R4"),
    Mutant("lease trusted", "common.workflows.lifecycle.advance", _leased, "R7"),
    Mutant(
        "wish written unguarded",
        "common.workflows.hibernate.request",
        _unguarded,
        "R7",
        frozenset({"pause", "flip", "verb_twice"}),
    ),
    Mutant(
        "start forgotten at a restart",
        "common.host.agent.write_atomically",
        _constant(None),
        "A4",
        frozenset({"agent_restarts"}),
    ),
    Mutant("missing signal is idle", "common.host.agent.idle_since", _missing_is_quiet, "I15"),
    Mutant("idle without a report", "common.workflows.hibernate.wants_hibernation", _idle_without_a_report, "I15"),
    Mutant("bill closed at once", "common.workflows.settle._settle", _settle_at_once, "I8"),
    Mutant(
        "bill of known ids alone",
        "common.workflows.settle.entries_of",
        _bill_of_ids_alone,
        "I8",
        frozenset({"market_lost_reply", "body_500_done", "lost", "listing_lags"}),
    ),
    Mutant("a charge counted twice", "common.workflows.settle.entries_of", _bill_counted_twice, "I8"),
    Mutant(
        "a closed bill stays closed",
        "common.workflows.rentals.destroy",
        _bill_stays_closed,
        "I8",
        frozenset({"market_late", "body_500_done"}),
    ),
    Mutant("any price is a price", "common.adapters.vast.exact_price", _any_price, "A22"),
    Mutant("tenants not told apart", "common.web.instances.load", _ended_by_anybody, "I9"),
)

NOT_REACHED = {
    "hosts._newest taking any report": "a late report could only pass for idleness, and whoever is idle is soon down",
    "hibernate._may_count without its epoch": "a machine serves in one epoch only until the standby brings start=keep",
    "hibernate._may_count without its version": "reports come numbered (hosts._newest), so an older one is never read",
}
"""Rules that nothing in this world can break yet: other rules stand before them."""

__all__ = ["MUTANTS", "Mutant", "lifecycle", "restore"]
