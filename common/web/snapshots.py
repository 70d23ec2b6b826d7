"""What an instance has kept."""

from __future__ import annotations

from common.domain.account import Right
from common.domain.instance import SnapshotTerms
from common.domain.snapshot import DrillRecord
from common.errors import Stale
from common.views import snapshots as view
from common.views.snapshots import CheckedOut, DifferenceOut, SnapshotOut, TermsOut
from common.web.instances import WISH_ATTEMPTS, own
from common.web.routes import Call, Page, Route
from common.workflows import drill, prune


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


ROUTES = (
    Route("GET", "/instances/{id}/snapshots/terms", show_terms, "How it is kept, and what was removed of it", TermsOut, tag="snapshots", errors=(404,)),
    Route("PATCH", "/instances/{id}/snapshots/terms", change_terms, "Interval, retention, caps: the fields that are given", TermsOut, body=SnapshotTerms, right=Right.WRITE, tag="snapshots", errors=(404, 409)),
    Route("GET", "/instances/{id}/snapshots", list_snapshots, "Its verified snapshots, newest first", Page[SnapshotOut], tag="snapshots", errors=(404,)),
    Route("GET", "/instances/{id}/snapshots/{newer}/since/{older}", compare_snapshots, "What lies between two of them", DifferenceOut, tag="snapshots", errors=(404, 409)),
    Route("POST", "/instances/{id}/snapshots/{snapshot}/drill", drill_snapshot, "Read it back on a machine of ours, up to a number of bytes", DrillRecord, right=Right.WRITE, tag="snapshots", errors=(404, 409)),
    Route("GET", "/instances/{id}/snapshots/{snapshot}/check", check_snapshot, "Is every object of it in the store?", CheckedOut, tag="snapshots", errors=(404, 409)),
)  # fmt: skip
