"""What a hurried hand might have written: the broken replacements that `mutants` plants, original in, broken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from common.domain.idle import Sample, idle_since
from common.domain.instance import Phase
from common.domain.offer import Wanted
from common.domain.reliability import Outcome
from common.domain.rental import RentalState
from common.errors import MarketError, MarketUnknown, ObjectStoreError
from common.host.agent import Agent
from common.ports import App, Cas, Doc, MarketEvent, Write
from common.records import Kept, World, event, load, read
from common.snapshots.verify import Verified, load_manifest
from common.workflows import deploy, failover, lifecycle, rentals, sweep
from common.workflows.history import ends

Replacement = Callable[[Any], Any]
"""The original -> the broken one."""


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


def unguarded(original: Any) -> Any:
    def step(app: App, *args: Any, **kwargs: Any) -> Any:
        return original(replace(app, store=Blind(app.store)), *args, **kwargs)

    return step


def constant(value: Any) -> Replacement:
    return lambda _original: lambda *_args, **_kwargs: value


# --- what is created and destroyed


def create_unannounced(original: Any) -> Any:
    def create(app: App, place: Any, kept: Any, instance: Any, now: Any) -> None:
        launch = rentals._launch(app, kept.value, instance, now)
        id = place.create(kept.value.offer, launch)
        called = kept.value.model_copy(update={"create_called_at": now, "provider_id": id})
        app.store.cas(kept.doc, rentals.dump(called))

    return create


def create_again(original: Any) -> Any:
    class Insists:
        def __init__(self, market: Any) -> None:
            self._market = market

        def __getattr__(self, name: str) -> Any:
            return getattr(self._market, name)

        def create(self, offer: Any, launch: Any) -> str:
            for other in [offer, *self._market.search(Wanted(gpu=offer.gpu))]:
                try:
                    return str(self._market.create(other, launch))
                except MarketUnknown:
                    continue
            raise MarketUnknown("tried all")

    def create(app: App, place: Any, kept: Any, instance: Any, now: Any) -> None:
        original(app, replace(place, market=Insists(place.market)), kept, instance, now)

    return create


def read_then_list(original: Any) -> Any:
    def run(app: App, now: Any, **more: Any) -> Any:
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
        return original(app, now, **more)

    return run


def orphan_by_writer(original: Any) -> Any:
    def destroy(app: App, listed: Any, live: Any, summary: Any, now: Any) -> None:
        for label, row in listed.items():
            kept = read(app, "rentals", label, sweep.Rental)
            key = kept.value.instance_key if kept else None
            instance = read(app, "instances", key, deploy.Instance) if key else None
            if kept and instance and instance.value.writer != label:
                app.markets[kept.value.provider].destroy(row.provider_id)

    return destroy


def destroy_once(original: Any) -> Any:
    def destroy(app: App, kept: Any, provider_id: str, now: Any) -> None:
        if kept.value.destroy_called_at is None:
            original(app, kept, provider_id, now)

    return destroy


def lost_at_once(original: Any) -> Any:
    def absent(app: App, market: Any, rental: Any, host: Any, now: Any) -> Any:
        return sweep._lost(rental, "gone", host, now, timing=app.settings.timing, both=True)

    return absent


def lost_by_silence(original: Any) -> Any:
    def judged(app: App, rental: Any, row: Any, host: Any, now: Any) -> Any:
        if row is not None and rental.state is RentalState.SERVING and sweep._is_silent(app, rental, host, now):
            return sweep._lost(rental, "gone", host, now, timing=app.settings.timing)
        return original(app, rental, row, host, now)

    return judged


def unknown_is_absent(original: Any) -> Any:
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

    def run(app: App, now: Any, **more: Any) -> Any:
        return original(replace(app, markets={name: Optimist(m) for name, m in app.markets.items()}), now, **more)

    return run


# --- races, freezes and the pointer


def losers_kept(original: Any) -> Any:
    def retire(app: App, ended: Any, now: Any) -> Any:
        return original(app, [end for end in ended if end.why != "lost the race"], now)

    return retire


def race_in_two_commits(original: Any) -> Any:
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


def freeze_releases(original: Any) -> Any:
    def freeze(app: App, world: World, now: Any) -> bool:
        """Destroy before the snapshot is verified."""
        instance = world.instance.value
        if instance.want == "up" or not instance.is_running or world.writer is None:
            return False
        down = instance.to(Phase.FREEZING, at=now).to(Phase.DOWN, at=now)
        down = down.having(writer=None, epoch=instance.epoch + 1)
        retired = failover.retire(app, ends([world.writer], Outcome.SERVED, "down"), now)
        told = event(app, instance, "down", "destroyed before its snapshot", now)
        app.store.commit([world.instance.becomes(down), *retired, told])
        return True

    return freeze


def without_proof(original: Any) -> Any:
    def verify(objects: Any, manifest_key: str, *, prefix: str, instance_key: bytes, proven: Any) -> Verified:
        try:
            manifest = load_manifest(objects, manifest_key, instance_key)
        except ObjectStoreError:
            raise
        return Verified(
            "known", tuple(manifest.packs), (), 0, manifest.version, manifest.files, manifest.bytes, 0, (), (), 0, False
        )

    return verify


def everything_was_proven(original: Any) -> Any:
    def verify(objects: Any, manifest_key: str, *, instance_key: bytes, proven: Any, **more: Any) -> Verified:
        packs = load_manifest(objects, manifest_key, instance_key).packs
        found: Verified = original(objects, manifest_key, instance_key=instance_key, proven=lambda: packs, **more)
        return found

    return verify


def final_without_nonce(original: Any) -> Any:
    return lambda instance, report: instance.phase is Phase.FREEZING


def freeze_by_the_clock(original: Any) -> Any:
    def give_up(app: App, world: World, now: Any) -> bool:
        timing = app.settings.timing.model_copy(update={"dead_man_s": 90.0})
        hurried = replace(app, settings=app.settings.model_copy(update={"timing": timing}))
        silent = replace(world, hosts={})
        return bool(original(hurried, silent, now))

    return give_up


def falls_back_for_anything(original: Any) -> Any:
    return lambda app, instance, result: True


def fence_at_once(original: Any) -> Any:
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


def leased(original: Any) -> Any:
    """A lease instead of guards: fine until somebody pauses for longer than it lasts."""
    leases: dict[tuple[int, str], Any] = {}

    def advanced(app: App, key: str, *_read: Any) -> tuple[World, lifecycle.End]:
        held = leases.get((id(app), key))
        if held and app.clock() < held:
            return load(app, key), lifecycle.End.SPENT
        leases[id(app), key] = app.clock() + timedelta(seconds=60)
        try:
            done: tuple[World, lifecycle.End] = original(replace(app, store=Blind(app.store)), key)
            return done
        finally:
            leases.pop((id(app), key), None)

    return advanced


# --- what people are told


def told_without_an_answer(original: Any) -> Any:
    return lambda self, error, at, **_more: self.delivered(at)


def given_up_at_once(original: Any) -> Any:
    return lambda self, error, at, **_more: self.dead(error, at)


def told_in_other_words(original: Any) -> Any:
    def payload(self: Any) -> bytes:
        told = self.model_copy(update={"body": {**self.body, "attempt": self.attempts}})
        return bytes(original(told))

    return payload


# --- hosts, idleness, callers


def missing_is_quiet(original: Any) -> Any:
    def since(samples: Any, *, now: Any, sample_every_s: float = 5.0) -> Any:
        seen = [s if s.gpu_percent is not None else Sample(at=s.at, gpu_percent=0.0) for s in samples]
        return idle_since(seen, now=now, sample_every_s=sample_every_s)

    return since


def idle_without_a_report(original: Any) -> Any:
    def wants(app: App, instance: Any, host: Any, now: Any) -> bool:
        fresh = host.model_copy(update={"last_seen_at": now})
        return bool(original(app, instance, fresh, now))

    return wants


def keeps_writing(original: Any) -> Any:
    def freeze(self: Agent, nonce: str | None) -> None:
        self._keep(frozen=True, fz=nonce)
        self.phase = self.phase if nonce is None else type(self.phase).FROZEN

    return freeze


def ended_by_anybody(original: Any) -> Any:
    """The account of the caller is not part of the key: whoever knows the id is served."""

    def world(app: App, key: str) -> Any:
        id = key.partition(".")[2]
        found = [doc.id for active in (True, False) for doc in app.store.query("instances", [("active", "==", active)])]
        return original(app, next((k for k in found if k.partition(".")[2] == id), key))

    return world


def unsigned_event(_original: Any) -> Any:
    """Whoever knows the address is believed; a body that does not parse is an event without words."""

    def event(_market: Any, headers: Any, _body: bytes, **_more: Any) -> MarketEvent:
        return MarketEvent(headers["X-Vast-Event-Id"], "unknown", "")

    return event


# --- what is pruned


def prune_at_once(original: Any) -> Any:
    return lambda objects, **words: original(objects, **{**words, "grace": timedelta(0)})


def prune_by_records_alone(_original: Any) -> Any:
    """Whatever has no record was deleted before anybody looked at what is in flight."""

    def keep_of(_app: Any, _instance: Any, records: Sequence[Kept[Any]]) -> Any:
        standing = {kept.value.manifest_key for kept in records if kept.value.given_up_at is None}
        return lambda _listed: standing

    return keep_of


def prune_the_newest(_original: Any) -> Any:
    """Sorted the wrong way round, and without a look at the pointer."""

    def outdated(records: Sequence[Any], *, in_use: Any, retention: Any, now: Any) -> set[str]:
        del in_use, now
        oldest_first = sorted(records, key=lambda record: (record.taken_at, record.id))
        return {record.id for record in oldest_first[retention.last :]}

    return outdated


def nothing_is_waited_for(original: Any) -> Any:
    """By a user who wants files of an older snapshot back."""
    return lambda instance: original(instance.having(copies=()))
