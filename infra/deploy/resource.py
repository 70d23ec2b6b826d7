"""What the deployer speaks of: resources with a kind, a name and a specification; what is wanted, what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Spec = Mapping[str, Any]
"""Plain values under our own names, only those that we decide; secrets never stand in it."""

Pending = Callable[[], bool]
"""Asks Google whether a long operation is over; raises `Failed` when it ended badly."""


class Failed(Exception):
    """A resource cannot be brought to what is wanted; str() says which, why and what to do."""


@dataclass(frozen=True)
class Found:
    spec: Spec
    ready: bool = True
    """False: Google still works at it."""
    failure: str = ""
    """Google gave up; the next apply tries anew."""
    handle: Any = None
    """What its kind needs to change or delete it."""


@dataclass(frozen=True)
class Sort:
    """How all resources of one kind are treated."""

    name: str
    api: str | None
    """Which of Google's interfaces must be enabled before it is asked; None = none of Google's."""
    is_data: bool = False
    """Outlives `destroy` unless that is told to take the data too."""
    prunes: bool = True
    """What is ours and no longer wanted is deleted by `apply`; False: it is kept."""
    goes_with: str | None = None
    """The kind whose deletion deletes these too: `destroy` does not delete them one by one."""


class Kind(Protocol):
    """All resources of one sort. State is what Google says: a kind keeps none.

    Methods raise `GoogleRefused`, `GoogleSilent` and `Failed`. Writes may be repeated: creating what is there and
    deleting what is gone succeed.
    """

    sort: Sort

    def present(self) -> dict[str, Found]:
        """Everything of this kind that is ours, by name."""

    def create(self, name: str, spec: Spec) -> Pending | None: ...

    def change(self, name: str, spec: Spec, found: Found) -> Pending | None: ...

    def delete(self, name: str, found: Found) -> Pending | None: ...


@dataclass(frozen=True)
class Wanted:
    kind: str
    name: str
    spec: Spec = field(default_factory=dict)


Act = Literal["create", "change", "delete", "keep", "wait"]
"""wait: it is as wanted, but Google has not finished it."""


@dataclass(frozen=True)
class Step:
    act: Act
    kind: str
    name: str
    wanted: Spec | None = None
    found: Found | None = None

    @property
    def differences(self) -> list[str]:
        """One line per value: `memory_mb: 256 -> 512`."""
        if self.act != "change" or self.wanted is None or self.found is None:
            return []
        lines = [
            f"{path}: {_shown(old)} -> {_shown(new)}"
            for path, old, new in _differences(self.found.spec, self.wanted, "")
        ]
        return [*lines, *([f"failed before: {self.found.failure}"] if self.found.failure else [])]


def compare(wanted: Mapping[str, Spec], found: Mapping[str, Found], kind: Kind) -> list[Step]:
    """What must happen to this kind, by name."""
    steps = [_step(kind.sort.name, name, spec, found.get(name)) for name, spec in wanted.items()]
    extra: Act = "delete" if kind.sort.prunes else "keep"
    steps += [Step(extra, kind.sort.name, name, None, here) for name, here in found.items() if name not in wanted]
    return sorted(steps, key=lambda step: step.name)


def _step(kind: str, name: str, spec: Spec, found: Found | None) -> Step:
    if found is None:
        return Step("create", kind, name, spec)
    if found.failure or next(_differences(found.spec, spec, ""), None):
        return Step("change", kind, name, spec, found)
    return Step("keep" if found.ready else "wait", kind, name, spec, found)


def _differences(old: Spec, new: Spec, path: str) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*old, *new}):
        a, b, here = old.get(name), new.get(name), f"{path}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{here}.")
        elif a != b:
            yield here, a, b


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
