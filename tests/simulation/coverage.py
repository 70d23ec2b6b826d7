"""The matrix: every fault x every phase of an instance. A cell that no run reached is an error, or stands in NEVER."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tests.simulation.faults import PHASES
from tests.simulation.knobs import KNOBS
from tests.simulation.runs import Run
from tests.simulation.world import Outcome

Cell = tuple[str, str]
FEW = 5
"""Of 2,000 random seeds: a cell that fewer hit gets a directed run of its own."""
SEEDS_OF_FEW = 2000
DIRECTED_SEEDS = 12
"""Tries of a directed run, each with another seed, until the cell is hit."""

_AT_CREATE = "decided when a machine is created, and that happens in boot, or when the standby writes"
NEVER: dict[Cell, str] = {}
for _knob in (
    *("wrong_gpu", "attest_missing"),
    *("boot_stuck", "boot_slow", "boot_dies", "boot_refuses", "mute", "slow_line", "small_disk", "price_moves"),
    *("destroy_fails", "destroy_throttled", "destroy_deferred", "listing_lags", "offer_gone", "refused_but_rented"),
):
    NEVER |= {(_knob, phase): _AT_CREATE for phase in PHASES if phase not in ("boot", "standby")}
for _knob in (
    "upload_partial",
    "upload_truncated",
    "upload_garbled",
    "upload_dies",
    "upload_quota",
    "manifest_garbled",
):
    NEVER |= {(_knob, phase): "a snapshot is uploaded by a machine that serves" for phase in ("down", "boot", "ended")}
    NEVER[_knob, "restoring"] = "a machine that is being restored takes no snapshot"
    NEVER[_knob, "handover"] = "a standby that hands over takes no snapshot"
NEVER["engine_dies", "handover"] = "no order is under way"
NEVER |= {("engine_dies", phase): "no order is under way" for phase in ("down", "boot", "ended")}
NEVER["boot_twice", "restoring"] = "the machine that is restored has made its first call"
for _knob in ("objects_throttled", "objects_lost_reply", "objects_stale_list", "objects_no_md5"):
    NEVER[_knob, "boot"] = "the bucket is asked about a snapshot that is taken or restored"
for _knob in ("objects_stale_list", "objects_no_md5"):
    NEVER[_knob, "restoring"] = "a restore lists nothing"
for _knob in ("objects_late", "objects_twice"):
    NEVER |= {
        (_knob, p): "the control plane only ever deletes from the bucket: a purge" for p in PHASES if p != "ended"
    }

_NO_PAIR = "there is no pair"
for _knob in ("frames_slow", "claim_lost", "claim_late", "claim_twice"):
    NEVER |= {(_knob, phase): _NO_PAIR for phase in ("boot", "restoring", "ended")}
NEVER |= {("false_alarm", phase): "nobody watches" for phase in ("boot", "restoring", "standby", "handover", "ended")}
for _knob in ("google_500_done", "standby_mute"):
    NEVER |= {
        (_knob, phase): "a standby is made for an instance that runs"
        for phase in PHASES
        if phase not in ("up", "freezing")
    }
for _knob in ("frames_slow", "claim_forged"):
    NEVER[_knob, "down"] = _NO_PAIR

LEADS: dict[str, tuple[tuple[str, float], ...]] = {
    "down": (("destroy_fails", 1.0), ("flip", 0.3)),
    "ended": (("destroy_fails", 1.0), ("flip", 0.3)),
    "freezing": (("slow_line", 0.7), ("flip", 0.5)),
    "standby": (("false_alarm", 0.02), ("asks_failover", 1.0)),
    "handover": (("asks_failover", 1.0), ("asks_hand_back", 1.0), ("frames_slow", 1.0)),
    "restoring": (("slow_line", 0.7),),
    "boot": (("boot_slow", 0.7), ("lost", 0.01)),
}
"""What a directed run breaks besides, so that the phase is reached and lasts."""
LEADS_TO: dict[str, tuple[tuple[str, float], ...]] = {
    "notice": (("outbid", 0.05), ("lost", 0.05)),
    "notice_replayed": (("notice", 1.0), ("outbid", 0.05), ("lost", 0.05)),
    "objects_throttled": (("bit_rot", 0.05), ("object_vanishes", 0.05)),
    "objects_lost_reply": (("bit_rot", 0.05), ("object_vanishes", 0.05)),
    "objects_stale_list": (("pause", 0.1), ("schedule_double", 1.0), ("beat_twice", 0.5)),
    **dict.fromkeys(("mail_unreachable", "mail_late", "mail_twice"), (("mail_lost_reply", 0.9),)),
    "mail_lost_reply": (("mail_unreachable", 0.7), ("outbid", 0.02)),
    "boot_twice": (("boot_slow", 1.0), ("store_unreachable", 0.05)),
    "listing_ghosts": (("flip", 0.5), ("verb_twice", 0.5)),
    **dict.fromkeys(("claim_lost", "claim_late", "claim_twice"), (("false_alarm", 0.1), ("frames_slow", 0.5))),
    **dict.fromkeys(("google_500_done", "standby_mute"), (("flips_standby", 0.7), ("standby_lost", 0.02))),
}
"""And so that the fault itself has its chance."""


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
        return [cell for cell in cells() if cell not in NEVER and self.hit[cell] < max(1.0, few)]

    def empty(self) -> list[Cell]:
        return [cell for cell in cells() if cell not in NEVER and not self.hit[cell] and not self.directed[cell]]

    def matrix(self) -> Iterator[str]:
        yield "runs that hit: " + " " * 14 + "".join(f"{phase:>11}" for phase in PHASES)
        for knob in KNOBS:
            yield f"{knob.name:<29}" + "".join(f"{self._shown((knob.name, phase)):>11}" for phase in PHASES)

    def _shown(self, cell: Cell) -> str:
        if cell in NEVER:
            return "-"
        return f"{self.hit[cell]}" + (f"+{self.directed[cell]}" if self.directed[cell] else "")


def directed_runs(wanting: Iterable[Cell]) -> Iterator[tuple[Cell, list[Run]]]:
    for cell in wanting:
        leads = tuple(lead for lead in (*LEADS.get(cell[1], ()), *LEADS_TO.get(cell[0], ())) if lead[0] != cell[0])
        yield cell, [Run(seed, directed=cell, also=leads) for seed in range(1, DIRECTED_SEEDS + 1)]
