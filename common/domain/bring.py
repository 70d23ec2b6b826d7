"""What is laid into a folder of the writer's workspace, beside the files there, where nothing is overwritten. Pure.

What only a fenced machine had, as `conflicts/<epoch>`, comes first; then what the user wants back of older snapshots,
as `restored/<snapshot>`. Both are snapshots in the bucket, and come one after the other to a GPU that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from common.domain.host import HostRecord, Order, OrderResult
from common.domain.instance import Conflict, Copy, Instance, Phase

Beside: TypeAlias = Conflict | Copy

BRING_TRIES = 3
COPIES_MAX = 5
"""Of an instance, that wait at a time."""
PATHS_MAX = 50
"""Of a copy."""
PATH_BYTES_MAX = 4096
PATH_CHARS_SHOWN = 80
PATHS_BYTES_MAX = 65_536
"""All of them together: five copies stay well below what a document holds."""
FOLDERS = {Conflict: "conflicts", Copy: "restored"}
COPIED, NOT_COPIED = "copied", "not_copied"
"""The line of the story when a copy is there, and when it never will be. It has the copy's own id."""


def waiting(instance: Instance) -> tuple[Beside, ...]:
    """The next one first."""
    known: tuple[Beside, ...] = (*instance.conflicts, *instance.copies)
    return tuple(each for each in known if each.is_waiting)


def bring_order(instance: Instance) -> Order | None:
    """To a GPU that runs. A host tries an order only once, so that each try has an id of its own."""
    first = next(iter(waiting(instance)), None)
    if first is None or instance.phase is not Phase.UP:
        return None
    args: dict[str, Any] = {"manifest_key": first.manifest_key, "into": folder_of(first)}
    if isinstance(first, Copy) and first.paths:
        args["paths"] = list(first.paths)
    return Order(id=_id_of(first), kind="bring", args=args)


def brought(instance: Instance, writer: HostRecord | None) -> tuple[Beside, OrderResult] | None:
    """What the writer's last order was to bring, and how that ended, where the record does not know of it yet."""
    last = writer.progress.last if writer else None
    found = next((each for each in waiting(instance) if last and last.id == _id_of(each)), None)
    return (found, last) if found and last else None


def waiting_for(instance: Instance, snapshot: str, paths: Sequence[str]) -> Copy | None:
    """What waits already of just that."""
    return next((each for each in instance.copies if (each.snapshot, each.paths) == (snapshot, tuple(paths))), None)


def is_last_try(beside: Beside) -> bool:
    return beside.tries + 1 >= BRING_TRIES


def noted(instance: Instance, beside: Beside, result: OrderResult) -> Instance:
    """The record once it knows how bringing this ended.

    A conflict stays until the workspace's own snapshots have it (`conflict.not_in`). A copy leaves: its snapshot stands
    as long as any other, and may be asked for again.
    """
    if not result.ok and not is_last_try(beside):
        return _changed(instance, beside, tries=beside.tries + 1)
    if isinstance(beside, Copy):
        return instance.having(copies=tuple(each for each in instance.copies if each != beside))
    if not result.ok:
        return _changed(instance, beside, tries=beside.tries + 1, has_failed=True)
    return _changed(instance, beside, brought=instance.snapshot_attempt)


def _changed(instance: Instance, beside: Beside, **changes: Any) -> Instance:
    other = beside.model_copy(update=changes)
    conflicts, copies = (
        tuple(other if each == beside else each for each in many) for many in (instance.conflicts, instance.copies)
    )
    return instance.having(conflicts=conflicts, copies=copies)


def folder_of(beside: Beside) -> str:
    """Relative to the workspace."""
    return f"{FOLDERS[type(beside)]}/{beside.snapshot if isinstance(beside, Copy) else beside.name}"


def names_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Names within a workspace, each once, in order; raises ValueError for what is none."""
    names = {_name_of(path) for path in paths}
    if sum(len(name.encode()) for name in names) > PATHS_BYTES_MAX:
        raise ValueError(f"they are longer than {PATHS_BYTES_MAX} bytes together; name a directory above them")
    return tuple(sorted(names))


def _name_of(path: str) -> str:
    shown = repr(path[:PATH_CHARS_SHOWN])
    if len(path.encode()) > PATH_BYTES_MAX:
        raise ValueError(f"{shown}... is longer than {PATH_BYTES_MAX} bytes")
    found = PurePosixPath(path)
    if not found.parts:
        raise ValueError(f"{shown} names nothing; leave the paths out for everything")
    if found.is_absolute():
        raise ValueError(f"{shown} is absolute; name it as seen from the workspace, as in data/notes.txt")
    if ".." in found.parts or "\0" in path:
        raise ValueError(f"{shown} is no name within a workspace")
    return str(found)


def _id_of(beside: Beside) -> str:
    return f"bring-{beside.name}-{beside.tries}"
