"""The machines' history: one outcome per rental, counted in the very commit that retires it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from common.domain.reliability import FROM_LOSS, MachineRecord, Outcome, says_something
from common.domain.rental import Rental
from common.ports import App, Create, Write, every
from common.records import Kept, dump, read
from common.records import retire as retire_rentals


@dataclass(frozen=True)
class End:
    """One rental that is let go, and how it ended for its machine."""

    kept: Kept[Rental]
    outcome: Outcome
    why: str


def ends(rentals: Iterable[Kept[Rental]], outcome: Outcome, why: str) -> list[End]:
    """The same end for all of them, but one that the market lost first ends as that."""
    return [End(kept, FROM_LOSS[kept.value.loss] if kept.value.loss else outcome, why) for kept in rentals]


def retire(app: App, ended: Sequence[End], now: datetime) -> list[Write]:
    """Writes that retire live rentals and count how they ended. All of one commit belong into one call.

    A rental leaves the live states once and for ever, under the guard of its revision: it is counted once, however
    often a step is replayed or killed.
    """
    live = [end for end in ended if end.kept.value.is_live]
    moves = [write for end in live for write in retire_rentals([end.kept], now=now, why=end.why)]
    return [*moves, *_counts(app, live, now)]


def _counts(app: App, ended: Sequence[End], now: datetime) -> list[Write]:
    """One write per machine, guarded on what was read of it; an outcome that says nothing about it writes nothing."""
    machines: dict[str, list[End]] = defaultdict(list)
    for end in ended:
        if says_something(end.outcome) and end.kept.value.create_called_at is not None:
            machines[machine_doc(end.kept.value.offer.machine_key)].append(end)
    return [_noted(app, id, of_machine, now) for id, of_machine in machines.items()]


def _noted(app: App, id: str, ended: Sequence[End], now: datetime) -> Write:
    offer = ended[0].kept.value.offer
    kept = read(app, "machines", id, MachineRecord)
    record = kept.value if kept else MachineRecord(provider=offer.provider, machine_id=offer.machine_id, at=now)
    for end in ended:
        record = record.noting(end.outcome, gpu=offer.gpu, at=now)
    return kept.becomes(record) if kept else Create("machines", id, dump(record))


def blocked(app: App, now: datetime) -> Mapping[str, datetime]:
    """`provider:machine_id` -> until when, of every machine that is not rented at present."""
    docs = every(app.store, "machines", [("blocked_until", ">", now)])
    return {f"{doc.data['provider']}:{doc.data['machine_id']}": doc.data["blocked_until"] for doc in docs}


def machine_doc(machine_key: str) -> str:
    """`provider:machine_id` as a document's id."""
    return machine_key.replace(":", ".", 1).replace("/", "_")
