"""Documents as typed records: loaded with what guards them, written back by compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from common import auth
from common.domain.host import HostRecord
from common.domain.instance import Instance
from common.domain.liveness import REFRESH_TIMES
from common.domain.orders import is_rewind_failed
from common.domain.rental import LIVE, Rental, RentalState
from common.domain.standby import is_lost
from common.errors import KeyLost, NotFound
from common.ports import App, Cas, Check, Create, Doc, Store, Where, Write, every, expiring

T = TypeVar("T", bound=BaseModel)
PLAIN = frozenset({str, int, float, bool, type(None), datetime})
"""What a document holds as it is."""


@dataclass(frozen=True)
class Kept(Generic[T]):
    """A record as it was read, with the document that guards its next write."""

    doc: Doc
    value: T

    def becomes(self, value: T) -> Cas:
        return Cas(self.doc, dump(value))

    def unchanged(self) -> Check:
        return Check(self.doc)


def dump(record: BaseModel) -> dict[str, Any]:
    """A record as a document's content."""
    if isinstance(record, Instance):
        record = record.with_activity()
    elif isinstance(record, Rental):
        record = record.with_restlessness()
    plain: dict[str, Any] = _plain(record.model_dump(mode="python"))
    return plain


def _plain(value: Any) -> Any:
    """Only what a document may hold: lists for tuples, plain strings for enums."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, dict):
        return {str(name): item if type(item) in PLAIN else _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in PLAIN else _plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def record_of(doc: Doc, model: type[T]) -> T:
    """Read out of the document once, however many ask the same `Doc`.

    What a later release wrote beside what we know is passed over: it is met while an apply goes on, and after one that
    was taken back. Of a user's wish the same models refuse it.
    """
    found: T | None = doc.read_as.get(model)
    if found is None:
        found = doc.read_as[model] = model.model_validate(doc.data, extra="ignore")
    return found


def read(app: App, collection: str, id: str, model: type[T]) -> Kept[T] | None:
    doc = app.store.get(collection, id)
    return Kept(doc, record_of(doc, model)) if doc else None


@dataclass(frozen=True)
class World:
    """One instance with its unsettled rentals and what their hosts last said, read at the start of a step."""

    instance: Kept[Instance]
    rentals: dict[str, Kept[Rental]]
    """Of GPUs, by label."""
    hosts: dict[str, Kept[HostRecord]]
    standbys: dict[str, Kept[Rental]] = field(default_factory=dict)
    """The present standby, and those on their way out."""

    def rental(self, label: str | None) -> Kept[Rental] | None:
        return (self.rentals.get(label) or self.standbys.get(label)) if label else None

    @property
    def standby(self) -> Kept[Rental] | None:
        return self.rental(self.instance.value.standby)

    @property
    def machines(self) -> list[Kept[Rental]]:
        """All of them."""
        return [*self.rentals.values(), *self.standbys.values()]

    @property
    def writer(self) -> Kept[Rental] | None:
        return self.rental(self.instance.value.writer)

    @property
    def writer_host(self) -> HostRecord | None:
        return self.host(self.instance.value.writer)

    def host(self, label: str | None) -> HostRecord | None:
        kept = self.hosts.get(label) if label else None
        return kept.value if kept else None

    def is_guarded(self) -> bool:
        """A mirror that is not lost has the next word: the role is never taken from its GPU behind its back (rule W2).

        Of a standby that writes itself, `mirror` decides. One that lacks what the pointer holds, and cannot get it, has
        nothing to say.
        """
        instance, mirror = self.instance.value, self.rental(self.instance.value.mirror)
        if is_rewind_failed(instance, self.host(instance.mirror)):
            return False
        return instance.is_on_standby or not is_lost(mirror.value if mirror else None)

    def still_silent(self) -> list[Check]:
        """For a commit that rests on the writer's silence: it fails when its host has been heard meanwhile."""
        kept = self.hosts.get(self.instance.value.writer or "")
        return [kept.unchanged()] if kept else []

    def in_state(self, *states: RentalState) -> list[Kept[Rental]]:
        return [kept for kept in self.rentals.values() if kept.value.state in states]


def load(
    app: App, key: str, instance: Kept[Instance] | None = None, hosts: Mapping[str, Kept[HostRecord]] | None = None
) -> World:
    """`instance`, `hosts` by label = what the caller has just read of them. Raises `NotFound`."""
    instance = instance or read(app, "instances", key, Instance)
    if instance is None:
        raise NotFound(f"there is no instance {key.rpartition('.')[2]}")
    machines = rentals_of(app, key)
    live = [label for label, kept in machines.items() if kept.value.state in LIVE]
    known = hosts or {}
    said = {label: kept for label in live if (kept := known.get(label) or read(app, "hosts", label, HostRecord))}
    gpus = {label: kept for label, kept in machines.items() if not kept.value.is_standby}
    standbys = {label: kept for label, kept in machines.items() if kept.value.is_standby}
    return World(instance, gpus, said, standbys)


def rentals_of(app: App, key: str) -> dict[str, Kept[Rental]]:
    """The instance's rentals that are not settled."""
    docs = every(app.store, "rentals", [("instance_key", "==", key), ("settled", "==", False)])
    return {doc.id: Kept(doc, record_of(doc, Rental)) for doc in docs}


def unsettled_rentals(app: App) -> dict[str, Kept[Rental]]:
    """Every rental that may still cost money, by its label."""
    return _rentals(app, ("settled", "==", False))


def restless_rentals(app: App) -> dict[str, Kept[Rental]]:
    """Those of them that do not simply serve: few, and read at the start of every pass of the reconcile."""
    return _rentals(app, ("restless", "==", True))


def _rentals(app: App, where: Where) -> dict[str, Kept[Rental]]:
    return {doc.id: Kept(doc, record_of(doc, Rental)) for doc in every(app.store, "rentals", [where])}


def heard_of(app: App, now: datetime) -> dict[str, datetime]:
    """When each host was last heard without saying anything new, by label, as far as it is written down.

    A few documents, one per process of the last minutes. Raises `StoreUnavailable`: then nothing is known.
    """
    since = now - timedelta(seconds=app.settings.timing.silent_after_s * REFRESH_TIMES)
    return newest_of(*(doc.data["hosts"] for doc in every(app.store, "seen", [("at", ">=", since)])))


def newest_of(*times: Mapping[str, datetime]) -> dict[str, datetime]:
    newest: dict[str, datetime] = {}
    for some in times:
        newest |= {label: max(at, newest.get(label, at)) for label, at in some.items()}
    return newest


def overlaid(host: HostRecord | None, heard: Mapping[str, datetime]) -> HostRecord | None:
    """The record with the newest time at which its host was heard; what it said then is what stands in the record."""
    at = heard.get(host.label) if host else None
    return host.model_copy(update={"last_seen_at": at}) if host and at and at > host.last_seen_at else host


def event(app: App, instance: Instance, kind: str, text: str, now: datetime, *, id: str | None = None) -> Create:
    """A line of the instance's story (`dumont instances why`), written in the commit that makes it true.

    `id` = of what it tells the end of; else one is drawn.
    """
    data = {"account": instance.account, "instance_key": instance.key, "at": now, "kind": kind, "text": text}
    return Create("events", f"{instance.key}.{id or app.ids()}", expiring("events", data, now))


def retire(rentals: Sequence[Kept[Rental]], *, now: datetime, why: str) -> list[Write]:
    """Writes that move live rentals to RELEASING; those already retired are left alone."""
    return [
        kept.becomes(kept.value.to(RentalState.RELEASING, at=now, message=why))
        for kept in rentals
        if kept.value.is_live
    ]


def operator_of(store: Store) -> str | None:
    """The account whose admins run the deployment."""
    doc = store.get("deployment", "self")
    return doc.data.get("operator") if doc else None


def prefix_of(instance: Instance) -> str:
    """Where the instance's objects live in the bucket."""
    return f"instances/{instance.key}/"


def manifest_key_of(app: App, instance: Instance) -> bytes:
    """The instance's data key: what its snapshots are encrypted and authenticated with.

    Raises `KeyLost` when the secret that wraps it is not set.
    """
    if instance.data_key is None:
        return app.deployment().derive("manifest", instance.key)
    under = wrapping_keys(app).get(instance.wrapped_by or "")
    if under is None:
        names = "DUMONT_SNAPSHOT_SECRET or DUMONT_SNAPSHOT_SECRET_BEFORE"
        raise KeyLost(f"the data key of {instance.id} is wrapped by a secret that is not set: put it back as {names}")
    return auth.unwrap(instance.data_key, instance.key, under=under)


def with_data_key(app: App, instance: Instance, key: bytes) -> Instance:
    """The instance, its data key wrapped by the deployment's newest secret."""
    id, under = next(iter(wrapping_keys(app).items()))
    wrapped = auth.wrap(key, instance.key, under=under, nonce=app.random(auth.WRAP_NONCE_BYTES))
    return instance.having(data_key=wrapped, wrapped_by=id)


def wrapping_keys(app: App) -> dict[str, bytes]:
    """By their ids, the one that wraps from now on first."""
    settings = app.settings
    secrets = [secret.encode() for secret in (settings.snapshot_secret, settings.snapshot_secret_before) if secret]
    keys = [auth.wrapping_key(secret) for secret in [*secrets, app.deployment().derive("wrap", "data keys")]]
    return {auth.wrapping_key_id(key): key for key in keys}
