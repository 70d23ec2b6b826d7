"""What the machines that we rented did: the history that keeps bad ones out of deploys."""

from __future__ import annotations

from datetime import datetime

from common.domain.model import Model
from common.domain.reliability import BLOCKED_BELOW, MachineRecord, Outcome, success_bound
from common.ports import App, Where


class MachineOut(Model):
    """One machine. The weights decay: an outcome counts half after 14 days."""

    provider: str
    machine_id: str
    gpu: str
    good: float
    bad: float
    success_rate_bound: float
    """Upper end of the confidence interval of its success rate; below `blocked_below` it is not rented."""
    blocked_below: float = BLOCKED_BELOW
    blocked: bool
    blocked_until: datetime | None
    outcomes: dict[str, int]
    """Counted since we know the machine, undecayed."""
    last_outcome: Outcome | None
    last_at: datetime


def history(
    app: App, *, provider: str | None, blocked: bool | None, limit: int, cursor: str | None, now: datetime
) -> tuple[list[MachineOut], str | None]:
    """Machines in the order of their ids (of the end of their block, when only the blocked are asked for).

    The cursor is the id of the last document looked at: a page of unblocked machines may be shorter than the limit.
    """
    where: list[Where] = [("provider", "==", provider)] if provider else []
    if blocked:
        where.append(("blocked_until", ">", now))
    docs = app.store.query("machines", where, limit=limit + 1, start_after=cursor)
    shown = [_out(MachineRecord.model_validate(doc.data), now) for doc in docs[:limit]]
    wanted = [machine for machine in shown if blocked is None or machine.blocked is blocked]
    return wanted, docs[limit - 1].id if len(docs) > limit else None


def _out(record: MachineRecord, now: datetime) -> MachineOut:
    good, bad = record.weights(now)
    is_blocked = record.is_blocked(now)
    return MachineOut(
        provider=record.provider,
        machine_id=record.machine_id,
        gpu=record.gpu,
        good=round(good, 3),
        bad=round(bad, 3),
        success_rate_bound=round(success_bound(good, bad), 4),
        blocked=is_blocked,
        blocked_until=record.blocked_until if is_blocked else None,
        outcomes=record.outcomes,
        last_outcome=record.last_outcome,
        last_at=record.at,
    )
