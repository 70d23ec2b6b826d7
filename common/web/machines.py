"""The machines' reliability history, and the machines that wait in the warm pool."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from common.domain.model import Model
from common.views import machines as view
from common.views import pool
from common.views.machines import MachineOut
from common.views.pool import PoolOut
from common.web.routes import PAGE_LIMIT_MAX, Call, Page, Route


class HistoryQuery(Model):
    model_config = ConfigDict(extra="forbid")

    provider: str | None = Field(default=None, max_length=32, pattern=r"^[a-z0-9]+$", examples=["vast"])
    blocked: bool | None = None
    limit: int = Field(default=50, ge=1, le=PAGE_LIMIT_MAX)
    cursor: str | None = Field(default=None, max_length=128, pattern=r"^[A-Za-z0-9._-]+$")


def list_machine_history(call: Call) -> Page[MachineOut]:
    query: HistoryQuery = call.query
    items, cursor = view.history(
        call.app,
        provider=query.provider,
        blocked=query.blocked,
        limit=query.limit,
        cursor=query.cursor,
        now=call.now,
    )
    return Page(items=items, next_cursor=cursor)


def show_pool(call: Call) -> PoolOut:
    return pool.show(call.app, call.now)


ROUTES = (
    Route("GET", "/pool", show_pool, "The warm pool: its terms, its machines, what it costs", PoolOut, tag="machines"),
    Route("GET", "/machines/history", list_machine_history, "What the machines that we rented did, and which are blocked", Page[MachineOut], query=HistoryQuery, tag="machines"),
)  # fmt: skip
