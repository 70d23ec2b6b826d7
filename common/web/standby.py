"""Standbys: what protects each instance, and the verbs that move it there and back."""

from __future__ import annotations

from pydantic import Field

from common.domain.account import Right
from common.domain.model import Model
from common.errors import NotFound
from common.views import standbys as view
from common.views.standbys import StandbyOut
from common.web.instances import Accepted, accepted_wish
from common.web.routes import Call, Page, Route
from common.workflows import mirror


class StandbyQuery(Model):
    instance: str | None = Field(default=None, max_length=64)
    """Of one instance alone."""


class Which(Model):
    """The instance that the verb is about."""

    instance_id: str = Field(min_length=1, max_length=64)


class Wish(Which):
    standby: bool
    """False: the standby is let go, once what only it and the GPU have is in a snapshot."""


def list_standbys(call: Call) -> Page[StandbyOut]:
    query: StandbyQuery = call.query
    items = view.standbys(call.app, call.caller.account, call.now, only=query.instance)
    if query.instance and not items:
        raise NotFound(f"there is no instance {query.instance}")
    return Page(items=items)


def fail_over(call: Call) -> Accepted:
    return accepted_wish(
        "failover",
        call,
        lambda app, world, now, also: mirror.request_failover(app, world, now=now, also=also),
        id=call.body.instance_id,
    )


def hand_back(call: Call) -> Accepted:
    return accepted_wish(
        "hand_back",
        call,
        lambda app, world, now, also: mirror.request_hand_back(app, world, now=now, also=also),
        id=call.body.instance_id,
    )


def change(call: Call) -> Accepted:
    wish: Wish = call.body
    return accepted_wish(
        "standby",
        call,
        lambda app, world, now, also: mirror.request_standby(app, world, wanted=wish.standby, now=now, also=also),
        id=wish.instance_id,
    )


_WRITE = {"right": Right.WRITE, "status": 202, "tag": "standby", "errors": (404, 409)}
# fmt: off
ROUTES = (
    Route("GET", "/standby", list_standbys, "What protects your instances, and what it costs", Page[StandbyOut], query=StandbyQuery, tag="standby", errors=(404,)),
    Route("PUT", "/standby", change, "With or without a standby", Accepted, body=Wish, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/standby/failover", fail_over, "Move to the standby now", Accepted, body=Which, **_WRITE),  # type: ignore[arg-type]
    Route("POST", "/standby/hand-back", hand_back, "Agree to go back to a GPU", Accepted, body=Which, **_WRITE),  # type: ignore[arg-type]
)
# fmt: on
