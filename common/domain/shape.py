"""The shape of a vendor's answer: which keys it has and which types stand there, never a value. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from common.domain.model import Model

Shape = Mapping[str, frozenset[str]]
"""Path -> types: `offers[].geolocation` -> null, text. The whole answer is the path `answer`."""
ROOT = "answer"
PATHS_MAX = 600
"""Of one answer; what would be more is left out."""
DEPTH_MAX = 8
ROWS_MAX = 200
"""Of a list that are looked at."""


class AnswerShape(Model):
    """The document `answers/<market>.<call>`: everything that a marketplace's answers to one call have looked like."""

    schema_version: int = 1
    market: str
    call: str
    """`PUT /api/v0/asks/*`"""
    paths: tuple[str, ...]
    """One line per path: `offers[].geolocation: null, text`."""
    at: datetime
    """When it last looked otherwise than before."""

    @property
    def shape(self) -> Shape:
        parts = (line.rpartition(": ") for line in self.paths)
        return {path: frozenset(types.split(", ")) for path, _, types in parts}

    @staticmethod
    def lines(shape: Shape) -> tuple[str, ...]:
        return tuple(f"{path}: {', '.join(sorted(types))}" for path, types in sorted(shape.items()))


def call_of(method: str, path: str) -> str:
    """The call without what it names: segments with a digit are ids, but for the interface's version."""
    segments = [part for part in path.split("/") if part]
    shown = [part if re.fullmatch(r"v\d+|[^\d]+", part) else "*" for part in segments]
    return f"{method} /{'/'.join(shown)}"


def shape_of(answer: Any) -> Shape:
    found: dict[str, frozenset[str]] = {}
    for path, type_ in _walk(answer, "", 0):
        if path in found or len(found) < PATHS_MAX:
            found[path] = found.get(path, frozenset()) | {type_}
    return found


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    yield path or ROOT, _type(value)
    if depth >= DEPTH_MAX:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{_key(key)}" if path else _key(key), depth + 1)
    elif isinstance(value, list):
        for item in value[:ROWS_MAX]:
            yield from _walk(item, f"{path}[]", depth + 1)


def _key(key: Any) -> str:
    """Keys that are ids stand for each other."""
    return "*" if re.fullmatch(r"\d+|[0-9a-f-]{16,}", str(key)) else str(key)


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int() | float() | Decimal():
            return "number"
        case str():
            return "text"
        case list():
            return "list"
    return "object"


def joined(shapes: Iterable[Shape]) -> Shape:
    """What has been seen in any of them."""
    both: dict[str, frozenset[str]] = {}
    for shape in shapes:
        for path, types in shape.items():
            both[path] = both.get(path, frozenset()) | types
    return both


def differences(theirs: Shape, ours: Shape) -> list[str]:
    """One line per path at which the vendor's answers differ from the simulator's; below such a path, none."""
    told: list[str] = []
    lines: list[str] = []
    for path in sorted({*theirs, *ours}):
        if any(path.startswith((f"{above}.", f"{above}[")) for above in told):
            continue
        if line := _difference(path, theirs, ours):
            lines.append(line)
            told.append(path)
    return lines


def _difference(path: str, theirs: Shape, ours: Shape) -> str | None:
    here, there = theirs.get(path), ours.get(path)
    if here is None:
        assert there is not None
        return f"{path}: the simulator sends {_said(there)}, the vendor nothing" if _is_told(path, theirs) else None
    if there is None:
        return f"{path}: the vendor sends {_said(here)}, the simulator nothing" if _is_told(path, ours) else None
    if here <= there:
        return None
    return f"{path}: the vendor sends {_said(here)}, the simulator {_said(there)}"


def _is_told(path: str, shape: Shape) -> bool:
    """Whether something of what it is part of was seen: an empty list says nothing of its rows."""
    if path.endswith("[]"):
        return False
    parent = path.rpartition(".")[0]
    return not parent or any(other.startswith(f"{parent}.") for other in shape)


def _said(types: frozenset[str]) -> str:
    return " or ".join(sorted(types))
