"""The matrix: every fault x every phase of an instance. A cell that no run reached is an error, or stands in RARE."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.simulation.faults import PHASES
from tests.simulation.knobs import KNOBS, OF_CREATES, OF_PAIRS, OF_SLACK, OF_SNAPSHOTS
from tests.simulation.runs import Run
from tests.simulation.world import Outcome

Cell = tuple[str, str]
FEW = 5
"""Of 2,000 random seeds: a cell that fewer hit gets a directed run of its own."""
SEEDS_OF_FEW = 2000
DIRECTED_SEEDS = 100
"""Tries of a directed run, each with another seed, until the cell is hit."""

OF_PAIRS_WORDS = ("frames_slow", "claim_lost", "claim_late", "claim_twice")
_GIVEN_UP = "a machine that was given up in the middle of an order and has not heard of it"
_NOT_HEARD = "a machine of the pair that has not heard for long that there is no pair any more"
_LATE = "a standby's create that was carried out long after its call"
_NO_STANDBY = "an instance ends when its standby is gone and its address given back: only one created late is left"
_ONE_STANDBY = (
    "a standby is created when the one before it is gone: none is left to be deleted while another one writes"
)
OF_A_STANDBY = ("standby_preempted", "standby_lost", "cut_pair", "gpu_dies_unheard", "second_death")
RARE: dict[Cell, str] = {
    **{(knob, phase): _GIVEN_UP for knob in OF_SNAPSHOTS for phase in ("down", "boot", "restoring", "ended")},
    **{(knob, "handover"): "a machine of the pool, or one created late, in that very minute" for knob in OF_CREATES},
    **{(knob, phase): _NOT_HEARD for knob in OF_PAIRS_WORDS for phase in ("boot", "ended")},
    **{("false_alarm", phase): _NOT_HEARD for phase in ("boot", "restoring", "standby", "handover", "ended")},
    **{(knob, phase): _LATE for knob in ("google_500_done", "standby_mute") for phase in PHASES if phase != "up"},
    ("frames_slow", "restoring"): _NOT_HEARD,
    **{(knob, "ended"): _NO_STANDBY for knob in (*OF_A_STANDBY, "google_fails_later", "google_delete_fails")},
    **{("google_delete_fails", phase): _ONE_STANDBY for phase in ("standby", "handover")},
    ("listing_ghosts", "handover"): "a loser of the race that ends in that very minute",
}
"""What comes once in a thousand seeds or never, and cannot be led to in a few runs: it is asked of no run. A cell that
seeds do reach is shown all the same.
"""

LEADS: dict[str, tuple[tuple[str, float], ...]] = {
    "down": (("destroy_fails", 1.0), ("flip", 0.3)),
    "ended": (("destroy_fails", 1.0), ("flip", 0.3)),
    "freezing": (("slow_line", 0.7), ("flip", 0.5), ("destroy_fails", 0.5)),
    "standby": (("false_alarm", 0.02), ("asks_failover", 1.0)),
    "handover": (("asks_failover", 1.0), ("asks_hand_back", 1.0), ("frames_slow", 1.0), ("destroy_fails", 0.5)),
    "restoring": (("slow_line", 0.7),),
    "boot": (("boot_slow", 0.7), ("lost", 0.01)),
}
"""What a directed run breaks besides, so that the phase is reached and lasts."""
LEADS_TO: dict[str, tuple[tuple[str, float], ...]] = {
    **dict.fromkeys(OF_CREATES, (("market_late", 0.5), ("boot_dies", 0.5))),
    "notice": (("outbid", 0.05), ("lost", 0.05)),
    "notice_replayed": (("notice", 1.0), ("outbid", 0.05), ("lost", 0.05)),
    "objects_throttled": (("bit_rot", 0.05), ("object_vanishes", 0.05)),
    "objects_lost_reply": (("bit_rot", 0.05), ("object_vanishes", 0.05)),
    "objects_stale_list": (("pause", 0.1), ("schedule_double", 1.0), ("beat_twice", 0.5)),
    **dict.fromkeys(("mail_unreachable", "mail_late", "mail_twice"), (("mail_lost_reply", 0.9),)),
    "mail_lost_reply": (("mail_unreachable", 0.7), ("outbid", 0.02)),
    **dict.fromkeys(("webhook_late", "webhook_twice", "webhook_forged"), (("webhook_lost", 0.7), ("outbid", 0.01))),
    "webhook_lost": (("outbid", 0.01),),
    "google_fails_later": (("standby_preempted", 0.05), ("flips_standby", 0.7)),
    "google_delete_fails": (("flips_standby", 1.0), ("standby_lost", 0.02)),
    **dict.fromkeys(("asks_failover", "asks_hand_back"), (("false_alarm", 0.03),)),
    "verb_retried": (("flip", 1.0), ("verb_twice", 0.5)),
    **dict.fromkeys(OF_SNAPSHOTS, (("freeze", 0.05), ("cut_control", 0.02), ("boot_stuck", 0.6))),
    "boot_twice": (("boot_slow", 1.0), ("store_unreachable", 0.05)),
    "listing_ghosts": (("flip", 0.5), ("verb_twice", 0.5), ("destroy_throttled", 0.7)),
    **dict.fromkeys(("claim_lost", "claim_late", "claim_twice"), (("false_alarm", 0.1), ("claim_forged", 0.3))),
    **dict.fromkeys(("google_500_done", "standby_mute"), (("flips_standby", 0.7), ("standby_lost", 0.02))),
}
"""And so that the fault itself has its chance."""
LEADS_TO_CELL: dict[Cell, tuple[tuple[str, float], ...]] = {
    ("google_fails_later", "restoring"): (("standby_preempted", 0.1), ("flip", 1.0)),
    ("verb_retried", "handover"): (),
    ("google_delete_fails", "restoring"): (("standby_lost", 0.05), ("outbid", 0.05), ("flips_standby", 1.0)),
    **{(knob, "handover"): (("freeze", 0.03), ("false_alarm", 0.02)) for knob in OF_SNAPSHOTS},
}
"""Where that of its phase and of its fault would be in each other's way."""

TOGETHER = 6
"""Cells of a directed run."""
ALONE = frozenset(
    {"outbid", "lost", "crash", "expires", "credit_gone", "region_down", "budget_spent", "cut_store", "cut_market"}
    | {"standby_lost", "standby_preempted", "gpu_dies_unheard", "second_death", "flips_standby", "flip"}
    | {"asks_failover", "asks_hand_back"}
)
"""They end the phase, hold up everything else in it, or are what leads to it."""
OF_USERS = frozenset({"flip", "verb_twice", "verb_retried"})


def cells() -> list[Cell]:
    return [(knob.name, phase) for knob in KNOBS for phase in PHASES]


class Coverage:
    """In how many runs each cell was hit."""

    def __init__(self) -> None:
        self.seeds = 0
        self.hit: Counter[Cell] = Counter()
        self.directed: Counter[Cell] = Counter()
        self.strikes: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.hit.update(outcome.cells.keys())
        for (knob, _), count in outcome.cells.items():
            self.strikes[knob] += count

    def wanting(self) -> list[Cell]:
        few = FEW * min(1.0, self.seeds / SEEDS_OF_FEW)
        return [cell for cell in cells() if cell not in RARE and self.hit[cell] < max(1.0, few)]

    def empty(self) -> list[Cell]:
        return [cell for cell in cells() if cell not in RARE and not self.hit[cell] and not self.directed[cell]]

    def matrix(self) -> Iterator[str]:
        yield "runs that hit: " + " " * 14 + "".join(f"{phase:>11}" for phase in PHASES)
        for knob in KNOBS:
            yield f"{knob.name:<29}" + "".join(f"{self._shown((knob.name, phase)):>11}" for phase in PHASES)

    def _shown(self, cell: Cell) -> str:
        if cell in RARE:
            return f"{self.hit[cell] or '-'}~"
        return f"{self.hit[cell]}" + (f"+{self.directed[cell]}" if self.directed[cell] else "")


@dataclass(frozen=True)
class Directed:
    """Cells of one phase that runs are directed at together: what does not end the story strikes in the same one."""

    cells: tuple[Cell, ...]
    also: tuple[tuple[str, float], ...]

    def run(self, seed: int, left: Collection[Cell]) -> Run:
        return Run(seed, directed=tuple(cell for cell in self.cells if cell in left), also=self.also)


def directed(wanting: Iterable[Cell]) -> list[Directed]:
    """Together are those that need the same to happen before, a few at a time; each one that ends machines alone."""
    groups: dict[Any, list[Cell]] = defaultdict(list)
    for cell in wanting:
        knob, phase = cell
        apart = knob if knob in ALONE else ""
        groups[phase, _leads_to(cell), knob in OF_SLACK, knob in OF_PAIRS, apart].append(cell)
    return [
        Directed(tuple(group[at : at + TOGETHER]), _leads(group[at : at + TOGETHER]))
        for group in groups.values()
        for at in range(0, len(group), TOGETHER)
    ]


def _leads(group: Sequence[Cell]) -> tuple[tuple[str, float], ...]:
    aimed = {knob for knob, _ in group}
    knob, phase = group[0]
    leads = dict((*LEADS.get(phase, ()), *_leads_to(group[0])))
    if phase == "handover" and knob not in OF_USERS:
        leads = {name: rate for name, rate in leads.items() if name not in OF_USERS}  # whoever flips, ends it
    return tuple((name, rate) for name, rate in leads.items() if name not in aimed)


def _leads_to(cell: Cell) -> tuple[tuple[str, float], ...]:
    return LEADS_TO_CELL.get(cell, LEADS_TO.get(cell[0], ()))
