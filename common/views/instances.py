"""What a user sees of an instance: state, address, protection, cost so far, and the story of its decisions."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

from common.domain.address import AddressRecord, address_name
from common.domain.bring import COPIED, folder_of
from common.domain.host import HostPhase, HostRecord
from common.domain.instance import (
    Conflict,
    Copy,
    Failure,
    Instance,
    Pointer,
    Protection,
    RaceResult,
    RestoredOlder,
    State,
    Want,
    state_of,
)
from common.domain.ledger import to_usd
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.operation import Operation
from common.domain.rental import Rental, RentalState
from common.domain.snapshot import SnapshotRecord
from common.domain.spec import Spec
from common.domain.verdict import Verdict, verdict
from common.errors import NotFound
from common.ports import App, Where, every
from common.records import World, heard_of, load, overlaid, read, record_of
from common.views.standbys import protection

COPY = "copy"
"""An operation's kind: files of an older snapshot are wanted."""
_Outcome = tuple[Literal["running", "succeeded", "failed"], float]
"""The status and the progress of an operation."""
EVENTS_SHOWN = 200
SNAPSHOTS_SHOWN = 50
"""Of the newest, among them."""


class Address(Model):
    """How a person gets in; `direct` changes with the machine."""

    kind: Literal["direct", "standby"]
    host: str
    port: int
    user: str = "root"


class RentalOut(Model):
    label: str
    provider: str
    state: RentalState
    gpu: str
    machine_id: str
    usd_per_hour: Usd
    """GPU + disk, while it runs."""
    now_usd_per_hour: Usd
    """What bills now: of a machine that the marketplace stopped, the disk alone."""
    message: str


class Cost(Model):
    """USD. `ledger` is what providers billed for settled machines; `metered` our own count for all of them so far."""

    ledger_usd: Usd
    metered_usd: Usd
    usd_per_hour: Usd
    """Right now."""


class LoserOut(Model):
    """A machine that lost the race: rented in vain for so long, for so much."""

    label: str
    machine_id: str
    seconds: float
    usd: Usd


class RaceOut(Model):
    """How the present machine, or the last one, was won."""

    winner: str
    rentals: int
    """Planned; those that were never started cost nothing."""
    ready_after_s: float
    losers: list[LoserOut]
    losers_usd: Usd


class InstanceOut(Model):
    id: str
    name: str
    state: State
    want: Want
    reason: str
    since: datetime
    created_at: datetime
    spec: Spec
    address: Address | None
    protection: Protection
    epoch: int
    snapshot: Pointer | None
    restored_older: RestoredOlder | None
    conflicts: list[Conflict]
    """What only a machine that was fenced had; it comes into the workspace as `conflicts/<epoch>`."""
    copies: list[Copy]
    """Files of older snapshots that wait for a GPU; they come into the workspace as `restored/<snapshot>`."""
    failure: Failure | None
    awake_until: datetime | None
    """A lease: until then idleness hibernates nothing."""
    progress: dict[str, Any]
    rentals: list[RentalOut]
    race: RaceOut | None
    cost: Cost
    keep_until: datetime | None


class OperationOut(Model):
    id: str
    instance_id: str
    kind: str
    status: Literal["running", "succeeded", "failed"]
    progress: float
    """0 to 1."""
    detail: str = ""


class EventOut(Model):
    at: datetime
    kind: str
    text: str


class WhyOut(Model):
    """Why an instance runs on, or what is about to happen to it, and what led here."""

    id: str
    state: State
    reason: str
    """Of the last wish: a user's verb, idle, lost."""
    heard_at: datetime | None
    """The last report of its machine."""
    idleness: Verdict
    items: list[EventOut]


def show(app: App, account: str, id: str, now: datetime) -> InstanceOut:
    """Raises `NotFound`, also for another tenant's id."""
    return _out(app, _world(app, account, id), now)


def page(
    app: App, account: str, *, limit: int, cursor: str | None, now: datetime
) -> tuple[list[InstanceOut], str | None]:
    """Instances in the order of their ids; the cursor is the last id shown."""
    start = f"{account}.{cursor}" if cursor else None
    docs = app.store.query("instances", [("account", "==", account)], limit=limit + 1, start_after=start)
    shown = [_out(app, load(app, doc.id), now) for doc in docs[:limit]]
    return shown, shown[-1].id if len(docs) > limit else None


def living(app: App, account: str, *, limit: int, now: datetime) -> list[InstanceOut]:
    """The first of those that have not ended, in the order of their ids."""
    docs = every(app.store, "instances", [("account", "==", account)])
    alive = (doc for doc in docs if doc.data["ended_at"] is None)
    return [_out(app, load(app, doc.id), now) for doc in islice(alive, limit)]


def events(app: App, account: str, id: str) -> list[EventOut]:
    """The newest lines of its story, oldest first; a snapshot's record is its line. Raises `NotFound`."""
    key = _world(app, account, id).instance.value.key
    where: list[Where] = [("instance_key", "==", key)]
    newest = app.store.query("events", where, order_by="at", newest_first=True, limit=EVENTS_SHOWN)
    taken = app.store.query("snapshots", where, order_by="taken_at", newest_first=True, limit=SNAPSHOTS_SHOWN)
    lines = [EventOut.model_validate(doc.data) for doc in reversed(newest)]
    lines += [_line_of(SnapshotRecord.model_validate(doc.data)) for doc in reversed(taken)]
    return sorted(lines, key=lambda line: line.at)


def _line_of(snapshot: SnapshotRecord) -> EventOut:
    version = f"{snapshot.version.epoch}.{snapshot.version.seq}"
    text = f"snapshot {version}: {snapshot.files} files, verified by {snapshot.proof}"
    return EventOut(at=snapshot.taken_at, kind="snapshot", text=text)


def why(app: App, account: str, id: str, now: datetime) -> WhyOut:
    """Raises `NotFound`."""
    world = _world(app, account, id)
    instance, timing = world.instance.value, app.settings.timing
    host = overlaid(world.writer_host, heard_of(app, now))
    return WhyOut(
        id=instance.id,
        state=state_shown(world),
        reason=instance.reason,
        heard_at=host.last_seen_at if host else None,
        idleness=verdict(
            instance, host, default_idle_for_s=timing.idle_for_s, silent_after_s=timing.silent_after_s, now=now
        ),
        items=events(app, account, id),
    )


def operation(app: App, account: str, id: str) -> OperationOut:
    """Raises `NotFound`."""
    kept = read(app, "operations", f"{account}.{id}", Operation)
    if kept is None:
        raise NotFound(f"there is no operation {id}")
    return operation_out(app, kept.value)


def operation_out(app: App, operation: Operation) -> OperationOut:
    world = load(app, operation.instance_key)
    (status, progress), detail = _of_copy(app, operation, world) if operation.kind == COPY else _of(operation, world)
    return OperationOut(
        id=operation.id,
        instance_id=operation.instance_id,
        kind=operation.kind,
        status=status,
        progress=progress,
        detail=detail,
    )


def _of(operation: Operation, world: World) -> tuple[_Outcome, str]:
    """Its status, progress and detail, as the instance stands."""
    state = state_shown(world)
    status, progress = _STATUS.get(operation.kind, {}).get(state, ("running", _PROGRESS.get(state, 0.5)))
    failure = world.instance.value.failure
    detail = failure.detail if failure and status == "failed" else state.value
    if status == "running" and world.instance.value.want not in _WISHED[operation.kind]:
        status, progress = "failed", 1.0  # it never ends: the instance does what was wished after it
        detail = failure.detail if failure else f"called off: it is wanted {world.instance.value.want} now"
    return (status, progress), detail


def _of_copy(app: App, operation: Operation, world: World) -> tuple[_Outcome, str]:
    """Under way as long as the record waits for it; then the story has a line of the operation's own id."""
    instance = world.instance.value
    for copy in instance.copies:
        if copy.id == operation.id:
            way = "on its way" if instance.is_running else "comes with the next GPU"
            return ("running", 0.5), f"{way}, into {folder_of(copy)} of the workspace: {copy.what}"
    line = app.store.get("events", f"{instance.key}.{operation.id}")
    if line is None:
        return ("failed", 1.0), "nothing is known of it any more"
    return ("succeeded" if line.data["kind"] == COPIED else "failed", 1.0), str(line.data["text"])


_UP: dict[State, _Outcome] = {
    State.RUNNING: ("succeeded", 1.0),
    State.ON_STANDBY: ("succeeded", 1.0),
    State.HANDING_OVER: ("succeeded", 1.0),
    State.FAILED: ("failed", 1.0),
    State.HIBERNATED: ("failed", 1.0),
    State.TERMINATED: ("failed", 1.0),
}
_STATUS: dict[str, dict[State, _Outcome]] = {
    "provision": _UP,
    "wake": _UP,
    "restore": _UP,
    "hibernate": {
        State.HIBERNATED: ("succeeded", 1.0),
        State.TERMINATED: ("succeeded", 1.0),
        State.FAILED: ("failed", 1.0),
    },
    "failover": {State.ON_STANDBY: ("succeeded", 1.0), State.HANDING_OVER: ("succeeded", 1.0)},
    "hand_back": {State.RUNNING: ("succeeded", 1.0)},
    "standby": dict.fromkeys(State, ("succeeded", 1.0)),
    "terminate": {State.TERMINATED: ("succeeded", 1.0)},
    "purge": {State.TERMINATED: ("succeeded", 1.0)},
}
_WISHED: dict[str, frozenset[Want]] = {
    **dict.fromkeys(("provision", "wake", "restore", "failover", "hand_back"), frozenset({Want.UP})),
    "standby": frozenset(Want),
    "hibernate": frozenset({Want.DOWN, Want.GONE}),
    **dict.fromkeys(("terminate", "purge"), frozenset({Want.GONE})),
}
"""What an instance is wanted to be while an operation can still come to its end."""
_PROGRESS = {
    State.REQUESTED: 0.05,
    State.PROVISIONING: 0.3,
    State.RESTORING: 0.7,
    State.FREEZING: 0.2,
    State.HIBERNATING: 0.6,
    State.TERMINATING: 0.4,
}


def _world(app: App, account: str, id: str) -> World:
    if not id.isalnum():
        raise NotFound(f"there is no instance {id}")
    return load(app, f"{account}.{id}")


def state_shown(world: World) -> State:
    host = world.writer_host
    frozen = bool(host and host.phase is HostPhase.FROZEN and host.fz == world.instance.value.fz)
    return state_of(world.instance.value, [kept.value for kept in world.rentals.values()], frozen=frozen)


def _out(app: App, world: World, now: datetime) -> InstanceOut:
    instance = world.instance.value
    rentals = [kept.value for kept in world.machines]
    of_it: list[Where] = [("instance_key", "==", instance.key)]
    ever = [record_of(doc, Rental) for doc in every(app.store, "rentals", of_it)]
    return InstanceOut(
        id=instance.id,
        name=instance.name,
        state=state_shown(world),
        want=instance.want,
        reason=instance.reason,
        since=instance.at,
        created_at=instance.created_at,
        spec=instance.spec,
        address=_address(world),
        protection=protection(app, world, now),
        epoch=instance.epoch,
        snapshot=instance.pointer,
        restored_older=instance.restored_older,
        conflicts=list(instance.conflicts),
        copies=list(instance.copies),
        failure=instance.failure,
        awake_until=instance.awake_until,
        progress=_progress(world.writer_host),
        rentals=[_rental(rental) for rental in rentals],
        race=_race(instance.won, ever, now) if instance.won else None,
        cost=_cost(app, instance, ever, now),
        keep_until=instance.keep_until,
    )


def _address(world: World) -> Address | None:
    """The standby's, which stays the same whichever machine answers; else the machine's own."""
    instance, writer = world.instance.value, world.writer.value if world.writer else None
    if instance.door and instance.address and (instance.mirror or instance.is_on_standby):
        return Address(kind="standby", host=instance.address, port=instance.door.user_port)
    if writer is None or writer.ssh_host is None or writer.ssh_port is None:
        return None
    return Address(kind="direct", host=writer.ssh_host, port=writer.ssh_port)


def _progress(host: HostRecord | None) -> dict[str, Any]:
    if host is None or host.progress.order is None:
        return {}
    progress = host.progress
    return {
        "what": progress.what,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "files": progress.files,
        "bytes_per_s": progress.bytes_per_s,
        "ratio": progress.ratio,
        "seconds_left": progress.seconds_left,
    }


def _rental(rental: Rental) -> RentalOut:
    return RentalOut(
        label=rental.label,
        provider=rental.provider,
        state=rental.state,
        gpu=rental.offer.gpu,
        machine_id=rental.offer.machine_id,
        usd_per_hour=rental.offer.usd_per_hour(rental.disk_gb),
        now_usd_per_hour=rental.now_usd_per_hour,
        message=rental.message,
    )


def _race(won: RaceResult, ever: Sequence[Rental], now: datetime) -> RaceOut:
    losers = [_loser(rental, now) for rental in ever if rental.label in won.losers and rental.create_called_at]
    return RaceOut(
        winner=won.winner,
        rentals=1 + len(won.losers),
        ready_after_s=won.ready_after_s,
        losers=losers,
        losers_usd=sum((loser.usd for loser in losers), Decimal(0)),
    )


def _loser(rental: Rental, now: datetime) -> LoserOut:
    meter = rental.meter
    seconds = ((meter.disk_until or now) - meter.disk_from).total_seconds() if meter.disk_from else 0.0
    return LoserOut(
        label=rental.label,
        machine_id=rental.offer.machine_id,
        seconds=seconds,
        usd=sum(rental.metered_usd(now).values(), Decimal(0)),
    )


def _idle_address_micro_usd(app: App, instance: Instance, ever: Sequence[Rental]) -> int:
    """What the address of its standbys cost while no machine held it."""
    if not any(rental.is_standby for rental in ever):
        return 0
    kept = read(app, "addresses", address_name(app.deployment().id, instance.id), AddressRecord)
    return kept.value.entered_micro_usd if kept else 0


def _cost(app: App, instance: Instance, ever: Sequence[Rental], now: datetime) -> Cost:
    """`ever` = all rentals of the instance, settled ones too."""
    ledger = sum(rental.booked_micro_usd for rental in ever) + _idle_address_micro_usd(app, instance, ever)
    metered = sum((sum(rental.metered_usd(now, since=rental.assigned_at).values()) for rental in ever), Decimal(0))
    burning = [r.offer.usd_per_hour(r.disk_gb) for r in ever if r.create_called_at and r.is_live]
    return Cost(ledger_usd=to_usd(ledger), metered_usd=metered, usd_per_hour=sum(burning, Decimal(0)))
