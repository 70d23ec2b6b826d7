"""The operations of the simulated Compute Engine: begun with a call, over when their time has come, kept for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Self

URL = "https://www.googleapis.com/compute/v1"
OPERATION_S = 8.0
PREEMPTED = "compute.instances.preempted"
Failure = tuple[str, str, int]
"""(code, message, HTTP status)"""


def moment(at: datetime) -> str:
    """As Google writes it."""
    return at.isoformat(timespec="milliseconds")


@dataclass
class Work:
    """One operation. `error` is what it ends, or ended, with."""

    name: str
    scope: str
    """`zones/<zone>` or `regions/<region>`."""
    kind: str
    target: str
    """Path of the resource below the scope: `instances/<name>`."""
    begun_at: datetime
    until: datetime
    is_done: bool = False
    error: Failure | None = None

    def shown(self, project: str) -> dict[str, Any]:
        scope = f"{URL}/projects/{project}/{self.scope}"
        kind, _, _ = self.scope.partition("/")
        code, message, status = self.error or ("", "", 0)
        failed = {
            "error": {"errors": [{"code": code, "message": message}]},
            "httpErrorStatusCode": status,
            "httpErrorMessage": "SERVICE UNAVAILABLE" if status == 503 else "BAD REQUEST",
        }
        return {
            "kind": "compute#operation",
            "id": self.name.rpartition("-")[2],
            "name": self.name,
            kind.removesuffix("s"): scope,
            "operationType": self.kind,
            "targetLink": f"{scope}/{self.target}",
            "status": "DONE" if self.is_done else "RUNNING",
            "progress": 100 if self.is_done else 0,
            "insertTime": moment(self.begun_at),
            "selfLink": f"{scope}/operations/{self.name}",
            **(failed if self.is_done and self.error else {}),
        }


class Book:
    """Every operation there was, and the request ids with which some were asked for."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._work: dict[str, Work] = {}
        self.request_ids: dict[str, str] = {}
        """Request id -> name of the operation that it began."""
        self.numbers = 0
        self.operation_s = OPERATION_S
        self.fails_later: dict[str, Failure] = {}
        """Kind of operation -> what the next one of it ends with."""

    def __iter__(self) -> Iterator[Work]:
        return iter([*self._work.values()])

    def number(self) -> int:
        """An id that nothing had before."""
        self.numbers += 1
        return 4_000_000_000_000 + self.numbers

    def known(self, request_id: str | None) -> dict[str, Any] | None:
        """What a request of that id was answered with, as it stands now."""
        name = self.request_ids.get(request_id or "")
        return self._work[name].shown(self._project) if name else None

    def begin(
        self,
        scope: str,
        kind: str,
        target: str,
        now: datetime,
        *,
        error: Failure | None = None,
        request_id: str | None = None,
    ) -> dict[str, Any]:
        name = f"operation-{now:%Y%m%d%H%M%S}-{self.number()}"
        error = error or self.fails_later.pop(kind, None)
        work = Work(name, scope, kind, target, now, now + timedelta(seconds=self.operation_s), error=error)
        self._work[name] = work
        if request_id:
            self.request_ids[request_id] = name
        return work.shown(self._project)

    def note_preemption(self, scope: str, target: str, now: datetime) -> None:
        """Google's own operations are over when they are shown first."""
        name = f"systemevent-{now:%Y%m%d%H%M%S}-{self.number()}"
        self._work[name] = Work(name, scope, PREEMPTED, target, now, now, is_done=True)

    def end_due(self, now: datetime, finish: Callable[[Work, datetime], None]) -> None:
        """In the order in which they were begun."""
        for work in self:
            if not work.is_done and now >= work.until:
                work.is_done = True
                finish(work, now)

    def to_json(self) -> dict[str, Any]:
        rows = [
            asdict(work) | {"begun_at": work.begun_at.isoformat(), "until": work.until.isoformat()} for work in self
        ]
        kept = {"numbers": self.numbers, "operation_s": self.operation_s, "request_ids": self.request_ids}
        return {**kept, "work": rows}

    @classmethod
    def from_json(cls, plain: dict[str, Any], project: str) -> Self:
        book = cls(project)
        book.numbers, book.operation_s = plain["numbers"], plain["operation_s"]
        book.request_ids = dict(plain["request_ids"])
        for row in plain["work"]:
            times = {name: datetime.fromisoformat(row[name]) for name in ("begun_at", "until")}
            work = Work(**{**row, **times, "error": tuple(row["error"]) if row["error"] else None})
            book._work[work.name] = work
        return book
