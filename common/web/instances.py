"""Instances: the user's verbs. Long work answers 202 with an operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from common.domain.account import Right
from common.domain.instance import Instance, Spec
from common.domain.offer import Offer, Usd
from common.domain.operation import Operation
from common.domain.strategy import RENTALS_PER_ROUND, choose
from common.errors import Exists, NotFound, Stale
from common.ports import App, Write
from common.records import World, load
from common.views import instances as view
from common.views.instances import EventOut, InstanceOut, OperationOut
from common.web.routes import PAGE_LIMIT_MAX, Call, Nothing, Page, Route
from common.workflows import deploy, hibernate, lifecycle, offers, operations, restore, terminate

WISH_ATTEMPTS = 6
"""The lifecycle writes the same record; a wish that meets it is read and decided afresh so often."""


class Accepted(BaseModel):
    operation: OperationOut


class PageQuery(BaseModel):
    limit: int = Field(default=50, ge=1, le=PAGE_LIMIT_MAX)
    cursor: str | None = Field(default=None, max_length=64, pattern=r"^[a-z0-9]+$")


class Provision(Spec):
    name: str = Field(default="", max_length=64)

    def spec(self) -> Spec:
        return Spec.model_validate(self.model_dump(exclude={"name"}))


class Terminate(BaseModel):
    model_config = ConfigDict(extra="forbid")

    discard: bool = False
    """Give up what no snapshot holds yet."""


class Plan(BaseModel):
    """What a provision would rent now; nothing is spent."""

    offers: list[OfferOut]
    rentals: int
    """Machines rented at first: five in a race."""
    usd_per_hour: Usd
    """Of the cheapest, GPU + disk, once it runs alone."""
    first_hour_usd: Usd
    """At most: every racer until one is ready is counted for the boot timeout, the winner for the hour."""


class OfferOut(BaseModel):
    provider: str
    machine_id: str
    gpu: str
    num_gpus: int
    usd_per_hour: Usd
    """GPU + disk."""
    gpu_usd_per_hour: Usd
    disk_usd_per_hour: Usd
    download_usd_per_gb: Usd
    upload_usd_per_gb: Usd
    download_mbit_s: float
    reliability: float
    country: str | None
    geolocation: str | None


def list_instances(call: Call) -> Page[InstanceOut]:
    query: PageQuery = call.query
    items, cursor = view.page(call.app, call.caller.account, limit=query.limit, cursor=query.cursor, now=call.now)
    return Page(items=items, next_cursor=cursor)


def show_instance(call: Call) -> InstanceOut:
    return view.show(call.app, call.caller.account, call.ids["id"], call.now)


def list_events(call: Call) -> Page[EventOut]:
    return Page(items=view.events(call.app, call.caller.account, call.ids["id"]))


def show_operation(call: Call) -> OperationOut:
    return view.operation(call.app, call.caller.account, call.ids["id"])


def plan_instance(call: Call) -> Plan:
    spec: Spec = call.body.spec()
    found = offers.for_user(call.app, spec)
    chosen = choose(found, spec.strategy)
    dearest_wait_s = Decimal(str(call.app.settings.timing.boot_timeout_s))
    losers = sum((offer.usd_per_hour(spec.disk_gb) for offer in chosen[1:]), Decimal(0))
    cheapest = chosen[0].usd_per_hour(spec.disk_gb)
    return Plan(
        offers=[offer_out(offer, spec.disk_gb) for offer in found],
        rentals=min(RENTALS_PER_ROUND[spec.strategy], len(chosen)),
        usd_per_hour=cheapest,
        first_hour_usd=cheapest + losers * dearest_wait_s / 3600,
    )


def offer_out(offer: Offer, disk_gb: int) -> OfferOut:
    return OfferOut(
        provider=offer.provider,
        machine_id=offer.machine_id,
        gpu=offer.gpu,
        num_gpus=offer.num_gpus,
        usd_per_hour=offer.usd_per_hour(disk_gb),
        gpu_usd_per_hour=offer.gpu_usd_per_hour,
        disk_usd_per_hour=offer.disk_usd_per_hour(disk_gb),
        download_usd_per_gb=offer.download_usd_per_gb,
        upload_usd_per_gb=offer.upload_usd_per_gb,
        download_mbit_s=offer.download_mbit_s,
        reliability=offer.reliability,
        country=offer.country,
        geolocation=offer.geolocation,
    )


def provision_instance(call: Call) -> Accepted:
    body: Provision = call.body
    mark = operations.fingerprint("provision", body.model_dump_json())

    def wish() -> tuple[Operation, Instance]:
        offers.for_user(call.app, body.spec())  # a wish that no offer meets is refused at once
        id = call.app.ids()
        operation, also = _begin(call, id, "provision", mark)
        account, name = call.caller.account, body.name
        made = deploy.request(call.app, account=account, id=id, name=name, spec=body.spec(), also=also, now=call.now)
        return operation, made

    return _accepted(call, mark, wish)


Verb = Callable[[App, World, datetime, Sequence[Write]], Instance]


def _verb(kind: str, call: Call, do: Verb) -> Accepted:
    """One wish about one instance, recorded with its operation in one commit."""
    id = call.ids["id"]
    mark = operations.fingerprint(kind, id, call.body.model_dump_json())

    def wish() -> tuple[Operation, Instance]:
        if not id.isalnum():
            raise NotFound(f"there is no instance {id}")
        world = load(call.app, f"{call.caller.account}.{id}")
        operation, also = _begin(call, id, kind, mark)
        return operation, do(call.app, world, call.now, also)

    return _accepted(call, mark, wish)


def _accepted(call: Call, mark: str, wish: Callable[[], tuple[Operation, Instance]]) -> Accepted:
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


def _begin(call: Call, id: str, kind: str, mark: str) -> tuple[Operation, list[Write]]:
    return operations.begin(
        call.app,
        account=call.caller.account,
        instance_id=id,
        kind=kind,
        idempotency_key=call.idempotency_key,
        fingerprint=mark,
        now=call.now,
    )


def wake_instance(call: Call) -> Accepted:
    return _verb("wake", call, lambda app, world, now, also: restore.request_wake(app, world, now, also))


def hibernate_instance(call: Call) -> Accepted:
    reason = f"asked by {call.caller.user_id}"
    return _verb(
        "hibernate",
        call,
        lambda app, world, now, also: hibernate.request(app, world, reason=reason, now=now, also=also),
    )


def terminate_instance(call: Call) -> Accepted:
    discard = call.body.discard
    return _verb(
        "terminate",
        call,
        lambda app, world, now, also: terminate.request(app, world, discard=discard, now=now, also=also),
    )


def restore_instance(call: Call) -> Accepted:
    return _verb("restore", call, lambda app, world, now, also: restore.request_restore(app, world, now, also))


def purge_instance(call: Call) -> Accepted:
    return _verb("purge", call, lambda app, world, now, also: terminate.request_purge(app, world, now, also))


_WRITE = {"right": Right.WRITE, "status": 202, "tag": "instances", "errors": (404, 409)}

ROUTES = (
    Route("GET", "/instances", list_instances, "Your instances", Page[InstanceOut], query=PageQuery, tag="instances"),
    Route("GET", "/instances/{id}", show_instance, "One instance", InstanceOut, tag="instances", errors=(404,)),
    Route("GET", "/instances/{id}/events", list_events, "Why: the story of its decisions", Page[EventOut], tag="instances", errors=(404,)),
    Route("POST", "/instances/plan", plan_instance, "What a provision would rent and cost; nothing is spent", Plan, body=Provision, tag="instances", errors=(409,)),
    Route("POST", "/instances/provision", provision_instance, "Rent a machine for a new instance", Accepted, body=Provision, right=Right.WRITE, status=202, tag="instances", errors=(402, 409)),
    Route("POST", "/instances/{id}/wake", wake_instance, "Bring it back on any machine", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/hibernate", hibernate_instance, "Snapshot, verify, stop paying", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/terminate", terminate_instance, "Last snapshot, then the end", Accepted, body=Terminate, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/restore", restore_instance, "Bring a terminated one back", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/instances/{id}/purge", purge_instance, "Delete a terminated one's snapshots", Accepted, **_WRITE),  # type: ignore[arg-type]
    Route("GET", "/operations/{id}", show_operation, "How long work goes", OperationOut, tag="operations", errors=(404,)),
)  # fmt: skip

__all__ = ["ROUTES", "Nothing"]
