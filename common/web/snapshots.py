"""What an instance has kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from common.views import snapshots as view
from common.views.snapshots import CheckedOut, DifferenceOut, SnapshotOut
from common.web.routes import Call, Page, Route

SNAPSHOT_ID = r"^[0-9]{1,12}-[0-9]{1,12}$"


class Between(BaseModel):
    model_config = ConfigDict(extra="forbid")

    older: str = Field(pattern=SNAPSHOT_ID, examples=["1-3"])
    newer: str = Field(pattern=SNAPSHOT_ID, examples=["1-7"])


def list_snapshots(call: Call) -> Page[SnapshotOut]:
    return Page(items=view.listed(call.app, call.caller.account, call.ids["id"]))


def compare_snapshots(call: Call) -> DifferenceOut:
    between: Between = call.query
    return view.compared(call.app, call.caller.account, call.ids["id"], between.older, between.newer)


def check_snapshot(call: Call) -> CheckedOut:
    return view.checked(call.app, call.caller.account, call.ids["id"], call.ids["snapshot"])


ROUTES = (
    Route("GET", "/instances/{id}/snapshots", list_snapshots, "Its verified snapshots, newest first", Page[SnapshotOut], tag="snapshots", errors=(404,)),
    Route("GET", "/instances/{id}/snapshots/difference", compare_snapshots, "What lies between two of them", DifferenceOut, query=Between, tag="snapshots", errors=(404, 409)),
    Route("GET", "/instances/{id}/snapshots/{snapshot}/check", check_snapshot, "Is every object of it in the store?", CheckedOut, tag="snapshots", errors=(404, 409)),
)  # fmt: skip
