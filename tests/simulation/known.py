"""Where an earlier run found what it looked for: tried first, and believed never.

A mutant is caught, and a cell reached, only by what runs now; when a known seed fails to, all others follow.
`LEARN=1` writes down what a run found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

FILE = Path(__file__).with_name("known.json")


@dataclass
class Known:
    caught: dict[str, int] = field(default_factory=dict)
    """Mutant -> a seed that catches it."""
    reached: dict[str, int] = field(default_factory=dict)
    """`knob,phase` -> the seed with which a directed run reaches that cell."""

    @classmethod
    def read(cls) -> Self:
        return cls(**json.loads(FILE.read_text()))

    def write(self) -> None:
        FILE.write_text(json.dumps(vars(self), indent=1, sort_keys=True) + "\n")

    def seeds_of(self, cells: Iterable[tuple[str, str]]) -> set[int]:
        return {self.reached[name] for cell in cells if (name := ",".join(cell)) in self.reached}


def known_first(known: Iterable[int], seeds: range) -> Iterator[int]:
    """Each of `seeds` once: in their order, but for the known ones."""
    first = sorted({seed for seed in known if seed in seeds})
    yield from first
    yield from (seed for seed in seeds if seed not in first)
