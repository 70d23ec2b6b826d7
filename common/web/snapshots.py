"""What an instance has kept."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict, Field, field_validator

from common.domain.account import Right
from common.domain.bring import PATHS_MAX, names_of, waiting_for
from common.domain.instance import Copy, Instance
from common.domain.model import Model
from common.domain.operation import Operation
from common.domain.snapshot import DrillRecord
from common.domain.spec import SnapshotTerms
from common.errors import Stale
from common.records import World
from common.views import snapshots as view
from common.views.instances import COPY
from common.views.snapshots import CheckedOut, DifferenceOut, SnapshotOut, TermsOut
from common.web.instances import WISH_ATTEMPTS, Accepted, accepted, begun, own
from common.web.routes import Call, Page, Route
from common.workflows import bring, drill, operations, prune


class Files(Model):
    """Which of a snapshot's files are wanted back."""

    model_config = ConfigDict(extra="forbid")

    paths: tuple[str, ...] = Field(default=(), max_length=PATHS_MAX, examples=[["notes.txt", "runs/7"]])
    """Files and directories, relative to the workspace; none = everything."""

    @field_validator("paths")
    @classmethod
    def _within_the_workspace(cls, paths: Sequence[str]) -> tuple[str, ...]:
        return names_of(paths)


def list_snapshots(call: Call) -> Page[SnapshotOut]:
    return Page(items=view.listed(call.app, call.caller.account, call.ids["id"]))


def compare_snapshots(call: Call) -> DifferenceOut:
    return view.compared(call.app, call.caller.account, call.ids["id"], call.ids["older"], call.ids["newer"])


def check_snapshot(call: Call) -> CheckedOut:
    return view.checked(call.app, call.caller.account, call.ids["id"], call.ids["snapshot"])


def drill_snapshot(call: Call) -> DrillRecord:
    instance, record = view.own_record(call.app, call.caller.account, call.ids["id"], call.ids["snapshot"])
    return drill.drill(call.app, instance, record, call.now)


def show_terms(call: Call) -> TermsOut:
    return view.terms(call.app, call.caller.account, call.ids["id"])


def change_terms(call: Call) -> TermsOut:
    """The same change twice is one; what the lifecycle writes meanwhile is read afresh."""
    for attempt in range(1, WISH_ATTEMPTS + 1):
        try:
            prune.change_terms(call.app, own(call, call.ids["id"]), call.body, call.now)
            break
        except Stale:
            if attempt == WISH_ATTEMPTS:
                raise
    return show_terms(call)


def restore_files(call: Call) -> Accepted:
    """The same thing asked for again, while it waits, is the same operation."""
    id, name, paths = call.ids["id"], call.ids["snapshot"], call.body.paths
    mark = operations.fingerprint(COPY, id, name, call.body.model_dump_json())
    if operations.known(call.app, call.caller.account, call.idempotency_key, mark) is None:
        instance, snapshot = view.own_record(call.app, call.caller.account, id, name)
        bring.refuse(instance, snapshot.value)
        bring.require_paths(call.app, instance, snapshot.value, paths)

    def wish() -> tuple[Operation, Instance]:
        world, (_, snapshot) = own(call, id), view.own_record(call.app, call.caller.account, id, name)
        if copy := waiting_for(world.instance.value, name, paths):
            return _joined(call, mark, world, copy), world.instance.value
        operation, also = begun(call, id, COPY, mark)
        copy = bring.copy_of(snapshot.value, paths, id=operation.id)
        return operation, bring.request(call.app, world, copy, snapshot, call.now, also)

    return accepted(call, mark, wish)


def _joined(call: Call, mark: str, world: World, copy: Copy) -> Operation:
    """The operation that is under way; its record may have expired while the instance slept."""
    account, instance = call.caller.account, world.instance.value
    if also := operations.remember(account, call.idempotency_key, mark, f"{account}.{copy.id}", call.now):
        call.app.store.commit([world.instance.unchanged(), *also])
    return Operation(
        id=copy.id,
        account=account,
        instance_id=instance.id,
        instance_key=instance.key,
        kind=COPY,
        created_at=call.now,
    )


ROUTES = (
    Route("GET", "/instances/{id}/snapshots/terms", show_terms, "How it is kept, and what was removed of it", TermsOut, tag="snapshots", errors=(404,)),
    Route("PATCH", "/instances/{id}/snapshots/terms", change_terms, "Interval, retention, caps: the fields that are given", TermsOut, body=SnapshotTerms, right=Right.WRITE, tag="snapshots", errors=(404, 409)),
    Route("GET", "/instances/{id}/snapshots", list_snapshots, "Its verified snapshots, newest first", Page[SnapshotOut], tag="snapshots", errors=(404,)),
    Route("GET", "/instances/{id}/snapshots/{newer}/since/{older}", compare_snapshots, "What lies between two of them", DifferenceOut, tag="snapshots", errors=(404, 409)),
    Route("POST", "/instances/{id}/snapshots/{snapshot}/drill", drill_snapshot, "Read it back on a machine of ours, up to a number of bytes", DrillRecord, right=Right.WRITE, tag="snapshots", errors=(404, 409)),
    Route("POST", "/instances/{id}/snapshots/{snapshot}/restore", restore_files, "Files of it into `restored/<snapshot>` of the workspace, beside what is there", Accepted, body=Files, right=Right.WRITE, status=202, tag="snapshots", errors=(404, 409)),
    Route("GET", "/instances/{id}/snapshots/{snapshot}/check", check_snapshot, "Is every object of it in the store?", CheckedOut, tag="snapshots", errors=(404, 409)),
)  # fmt: skip
