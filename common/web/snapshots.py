"""What an instance has kept."""

from __future__ import annotations

from common.views import snapshots as view
from common.views.snapshots import CheckedOut, DifferenceOut, SnapshotOut
from common.web.routes import Call, Page, Route


def list_snapshots(call: Call) -> Page[SnapshotOut]:
    return Page(items=view.listed(call.app, call.caller.account, call.ids["id"]))


def compare_snapshots(call: Call) -> DifferenceOut:
    return view.compared(call.app, call.caller.account, call.ids["id"], call.ids["older"], call.ids["newer"])


def check_snapshot(call: Call) -> CheckedOut:
    return view.checked(call.app, call.caller.account, call.ids["id"], call.ids["snapshot"])


ROUTES = (
    Route("GET", "/instances/{id}/snapshots", list_snapshots, "Its verified snapshots, newest first", Page[SnapshotOut], tag="snapshots", errors=(404,)),
    Route("GET", "/instances/{id}/snapshots/{newer}/since/{older}", compare_snapshots, "What lies between two of them", DifferenceOut, tag="snapshots", errors=(404, 409)),
    Route("GET", "/instances/{id}/snapshots/{snapshot}/check", check_snapshot, "Is every object of it in the store?", CheckedOut, tag="snapshots", errors=(404, 409)),
)  # fmt: skip
