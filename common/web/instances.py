"""Instances: the user's verbs. Long work answers 202 with an operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal

from pydantic import ConfigDict, Field

from common.domain.account import Right
from common.domain.boot import HEDGES_MAX
from common.domain.instance import Instance, Want
from common.domain.model import Model
from common.domain.offer import Usd
from common.domain.operation import Operation
from common.domain.ranking import Ranked
from common.domain.spec import Spec
from common.domain.strategy import HEDGED, RENTALS_PER_ROUND, choose, choose_hedge
from common.errors import Exists, NotFound, Stale
from common.ports import App, Write
from common.records import World, load
from common.views import instances as view
from common.views.instances import EventOut, InstanceOut, OperationOut, WhyOut
from common.web.routes import PAGE_LIMIT_MAX, Call, Nothing, Page, Route
from common.workflows import budgets, deploy, hibernate, lifecycle, offers, operations, restore, terminate

WISH_ATTEMPTS = 6
"""The lifecycle writes the same record; a wish that meets it is read and decided afresh so often."""


class Accepted(Model):
    operation: OperationOut


class PageQuery(Model):
    limit: int = Field(default=50, ge=1, le=PAGE_LIMIT_MAX)
    cursor: str | None = Field(default=None, max_length=64, pattern=r"^[a-z0-9]+$")


class Provision(Spec):
    name: str = Field(default="", max_length=64)

    def spec(self) -> Spec:
        return Spec.model_validate(self.model_dump(exclude={"name"}))


class Terminate(Model):
    model_config = ConfigDict(extra="forbid")

    discard: bool = False
    """Give up what no snapshot holds yet."""


class Snooze(Model):
    model_config = ConfigDict(extra="forbid")

    minutes: int = Field(default=60, ge=1, le=24 * 60)
    """From now; the newest lease counts."""


class KeepAlive(Model):
    model_config = ConfigDict(extra="forbid")

    minutes: int = Field(default=60, ge=0, le=7 * 24 * 60)
    """From now; the newest lease counts, and 0 ends it."""


class Plan(Model):
    """What a provision would rent now; nothing is spent."""

    offers: list[OfferOut]
    rentals: int
    """Machines rented at first: five in a race."""
    hedges: int
    """Second machines that may be rented when the first is slow to boot."""
    usd_per_hour: Usd
    """Of the best ranked, GPU + disk, once it runs alone."""
    all_in_usd_per_hour: Usd
    """Of the best ranked, with its share of bandwidth and of the wait."""
    dearest_usd_per_hour: Usd
    """Of all that may be rented for it, GPU + disk: a cap that changes nothing of the plan."""
    ready_s: float
    """Expected seconds until the best ranked is ready: boot and downloads."""
    first_hour_usd: Usd
    """At most: every racer until one is ready is counted for the boot timeout, the dearest for the hour."""


class OfferOut(Model):
    provider: str
    machine_id: str
    gpu: str
    num_gpus: int
    usd_per_hour: Usd
    """GPU + disk."""
    gpu_usd_per_hour: Usd
    disk_usd_per_hour: Usd
    all_in_usd_per_hour: Usd
    """GPU + disk + one session's bandwidth and waiting, spread over its hours."""
    rank_usd_per_hour: Usd
    """What the list is ordered by: all in, and the wait itself."""
    bandwidth_usd: Usd
    """Per session."""
    waiting_usd: Usd
    """Per session: what the market bills before the machine is ready."""
    ready_s: float
    """Expected: boot_s + image_download_s + snapshot_download_s."""
    boot_s: float
    image_download_s: float
    snapshot_download_s: float
    download_usd_per_gb: Usd
    upload_usd_per_gb: Usd
    download_mbit_s: float
    reliability: float
    country: str | None
    geolocation: str | None
    standby_rtt_ms: float | None
    """Estimated, to where its standby is or would be."""
    standby_rtt_far_ms: float | None
    """The same from the far end of its country; null = more than the country is known, or nothing."""
    place_country: str | None
    """Where it was taken to stand for that estimate (ISO 3166 alpha-2)."""
    place_told_by: str | None
    """`text` of the marketplace's, or `ip`: only where its address is registered, which may be another country."""
    blocked_until: datetime | None
    """Set: its history keeps the machine out of deploys until then."""


def list_instances(call: Call) -> Page[InstanceOut]:
    query: PageQuery = call.query
    items, cursor = view.page(call.app, call.caller.account, limit=query.limit, cursor=query.cursor, now=call.now)
    return Page(items=items, next_cursor=cursor)


def show_instance(call: Call) -> InstanceOut:
    return view.show(call.app, call.caller.account, call.ids["id"], call.now)


def list_events(call: Call) -> Page[EventOut]:
    return Page(items=view.events(call.app, call.caller.account, call.ids["id"]))


def explain_instance(call: Call) -> WhyOut:
    return view.why(call.app, call.caller.account, call.ids["id"], call.now)


def show_operation(call: Call) -> OperationOut:
    return view.operation(call.app, call.caller.account, call.ids["id"])


def plan_instance(call: Call) -> Plan:
    spec: Spec = call.body.spec()
    found = offers.for_user(call.app, spec, call.now)
    chosen = choose(found, spec.strategy)
    dearest_wait_s = Decimal(str(call.app.settings.timing.boot_timeout_s))
    prices = sorted(ranked.usd_per_hour for ranked in chosen)
    hedge = choose_hedge(found, tried=[chosen[0].offer.machine_id]) if spec.strategy in HEDGED else None
    losers = sum(prices[:-1], hedge.usd_per_hour if hedge else Decimal(0))
    best = chosen[0]
    return Plan(
        offers=[offer_out(ranked) for ranked in found],
        rentals=min(RENTALS_PER_ROUND[spec.strategy], len(chosen)),
        hedges=HEDGES_MAX if hedge else 0,
        usd_per_hour=best.usd_per_hour,
        all_in_usd_per_hour=best.all_in_usd_per_hour,
        dearest_usd_per_hour=max(prices[-1], hedge.usd_per_hour if hedge else Decimal(0)),
        ready_s=best.ready_s,
        first_hour_usd=prices[-1] + losers * dearest_wait_s / 3600,
    )


def offer_out(ranked: Ranked) -> OfferOut:
    offer = ranked.offer
    return OfferOut(
        provider=offer.provider,
        machine_id=offer.machine_id,
        gpu=offer.gpu,
        num_gpus=offer.num_gpus,
        usd_per_hour=ranked.usd_per_hour,
        gpu_usd_per_hour=offer.gpu_usd_per_hour,
        disk_usd_per_hour=ranked.usd_per_hour - offer.gpu_usd_per_hour,
        all_in_usd_per_hour=ranked.all_in_usd_per_hour,
        rank_usd_per_hour=ranked.rank_usd_per_hour,
        bandwidth_usd=ranked.bandwidth_usd,
        waiting_usd=ranked.waiting_usd,
        ready_s=ranked.ready_s,
        boot_s=ranked.boot_s,
        image_download_s=ranked.image_download_s,
        snapshot_download_s=ranked.snapshot_download_s,
        download_usd_per_gb=offer.download_usd_per_gb,
        upload_usd_per_gb=offer.upload_usd_per_gb,
        download_mbit_s=offer.download_mbit_s,
        reliability=offer.reliability,
        country=offer.country,
        geolocation=offer.geolocation,
        standby_rtt_ms=ranked.standby_rtt_ms,
        standby_rtt_far_ms=ranked.standby_rtt_far_ms,
        place_country=ranked.place.country if ranked.place else None,
        place_told_by=ranked.place.told_by if ranked.place else None,
        blocked_until=ranked.blocked_until,
    )


def provision_instance(call: Call) -> Accepted:
    body: Provision = call.body
    mark = operations.fingerprint("provision", body.model_dump_json())

    def wish() -> tuple[Operation, Instance]:
        found = offers.for_user(call.app, body.spec(), call.now)  # a wish that no offer meets is refused at once
        budgets.check(call.app, call.caller.account, usd_per_hour=_first_price(found, body.spec()), now=call.now)
        id = call.app.ids()
        operation, also = begun(call, id, "provision", mark)
        account, name = call.caller.account, body.name
        made = deploy.request(call.app, account=account, id=id, name=name, spec=body.spec(), also=also, now=call.now)
        return operation, made

    return accepted(call, mark, wish)


Verb = Callable[[App, World, datetime, Sequence[Write]], Instance]


def accepted_wish(kind: str, call: Call, do: Verb, *, id: str | None = None) -> Accepted:
    """One wish about one instance (`id`, or the path's), recorded with its operation in one commit."""
    id = id or call.ids["id"]
    mark = operations.fingerprint(kind, id, call.body.model_dump_json())

    def wish() -> tuple[Operation, Instance]:
        world = own(call, id)
        operation, also = begun(call, id, kind, mark)
        return operation, do(call.app, world, call.now, also)

    return accepted(call, mark, wish)


def own(call: Call, id: str) -> World:
    """Raises `NotFound`, also for another tenant's id."""
    if not id.isalnum():
        raise NotFound(f"there is no instance {id}")
    return load(call.app, f"{call.caller.account}.{id}")


def accepted(call: Call, mark: str, wish: Callable[[], tuple[Operation, Instance]]) -> Accepted:
    """Record the wish once per Idempotency-Key, then advance. When somebody else wrote first, it is decided again."""
    for attempt in range(1, WISH_ATTEMPTS + 1):
        known = operations.find(call.app, call.caller.account, call.idempotency_key, mark)
        if known:
            return Accepted(operation=view.operation_out(call.app, known))
        try:
            operation, instance = wish()
        except (Stale, Exists):
            if attempt == WISH_ATTEMPTS:
                raise
        else:
            lifecycle.hint(call.app, instance.key)
            return Accepted(operation=view.operation_out(call.app, operation))
    raise AssertionError("the last attempt returns or raises")


def begun(call: Call, id: str, kind: str, mark: str) -> tuple[Operation, list[Write]]:
    return operations.begin(
        call.app,
        account=call.caller.account,
        instance_id=id,
        kind=kind,
        idempotency_key=call.idempotency_key,
        fingerprint=mark,
        now=call.now,
    )


def _first_price(found: Sequence[Ranked], spec: Spec) -> Decimal:
    """USD per hour of everything that the first round may run at once."""
    return sum((ranked.usd_per_hour for ranked in choose(found, spec.strategy)), Decimal(0))


def wake_instance(call: Call) -> Accepted:
    return accepted_wish("wake", call, _within_budget(restore.request_wake))


def _within_budget(do: Callable[[App, World, datetime, Sequence[Write]], Instance]) -> Verb:
    """The same verb, refused while the account's budget does not allow the instance's last price."""

    def checked(app: App, world: World, now: datetime, also: Sequence[Write]) -> Instance:
        instance = world.instance.value
        price = Decimal(0) if instance.want is Want.UP else budgets.last_price(app, instance.key)
        budgets.check(app, instance.account, usd_per_hour=price, now=now)
        return do(app, world, now, also)

    return checked


def hibernate_instance(call: Call) -> Accepted:
    reason = f"asked by {call.caller.user_id}"
    return accepted_wish(
        "hibernate",
        call,
        lambda app, world, now, also: hibernate.request(app, world, reason=reason, now=now, also=also),
    )


def snooze_instance(call: Call) -> InstanceOut:
    return _leased(call, "snooze")


def keep_instance_alive(call: Call) -> InstanceOut:
    return _leased(call, "keep_alive")


def _leased(call: Call, kind: str) -> InstanceOut:
    """Once per Idempotency-Key; the lifecycle may write the same record meanwhile."""
    id, minutes = call.ids["id"], call.body.minutes
    mark = operations.fingerprint(kind, id, str(minutes))
    for attempt in range(1, WISH_ATTEMPTS + 1):
        if operations.known(call.app, call.caller.account, call.idempotency_key, mark):
            break
        world = own(call, id)
        remembered = operations.remember(call.caller.account, call.idempotency_key, mark, id, call.now)
        try:
            hibernate.snooze(call.app, world, minutes=minutes, now=call.now, kind=kind, also=remembered)
            lifecycle.hint(call.app, world.instance.value.key)
            break
        except (Stale, Exists):
            if attempt == WISH_ATTEMPTS:
                raise
    return view.show(call.app, call.caller.account, id, call.now)


def terminate_instance(call: Call) -> Accepted:
    discard = call.body.discard
    return accepted_wish(
        "terminate",
        call,
        lambda app, world, now, also: terminate.request(app, world, discard=discard, now=now, also=also),
    )


def restore_instance(call: Call) -> Accepted:
    return accepted_wish("restore", call, _within_budget(restore.request_restore))


def purge_instance(call: Call) -> Accepted:
    return accepted_wish("purge", call, lambda app, world, now, also: terminate.request_purge(app, world, now, also))


_WRITE = {"right": Right.WRITE, "status": 202, "tag": "instances", "errors": (402, 404, 409)}

ROUTES = (
    Route("GET", "/instances", list_instances, "Your instances", Page[InstanceOut], query=PageQuery, tag="instances"),
    Route("GET", "/instances/{id}", show_instance, "One instance", InstanceOut, tag="instances", errors=(404,)),
    Route("GET", "/instances/{id}/events", list_events, "Why: the story of its decisions", Page[EventOut], tag="instances", errors=(404,)),
    Route("GET", "/instances/{id}/why", explain_instance, "Why it runs on, or what is about to happen, and its story", WhyOut, tag="instances", errors=(404,)),
    Route("POST", "/instances/plan", plan_instance, "What a provision would rent and cost; nothing is spent", Plan, body=Provision, tag="instances", errors=(409,)),
    Route("POST", "/instances/provision", provision_instance, "Rent a machine for a new instance", Accepted, body=Provision, right=Right.WRITE, status=202, tag="instances", errors=(402, 409)),
    Route("POST", "/instances/{id}/wake", wake_instance, "Bring it back on any machine", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/hibernate", hibernate_instance, "Snapshot, verify, stop paying", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/snooze", snooze_instance, "Not to be hibernated for idleness for a while", InstanceOut, body=Snooze, right=Right.WRITE, tag="instances", errors=(404, 409)),
    Route("POST", "/instances/{id}/keep-alive", keep_instance_alive, "A lease of up to a week; 0 minutes end it", InstanceOut, body=KeepAlive, right=Right.WRITE, tag="instances", errors=(404, 409)),
    Route("POST", "/instances/{id}/terminate", terminate_instance, "Last snapshot, then the end", Accepted, body=Terminate, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/restore", restore_instance, "Bring a terminated one back", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/purge", purge_instance, "Delete a terminated one's snapshots", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("GET", "/operations/{id}", show_operation, "How long work goes", OperationOut, tag="operations", errors=(404,)),
)  # fmt: skip

__all__ = ["ROUTES", "Nothing"]
