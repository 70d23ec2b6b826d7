"""What each idle policy wastes on recorded days: paid idle time, and the billed minutes of every wake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.cli.evaluation.readers import Recorded
from common.cli.evaluation.report import Bound, Evaluation, measured, span
from common.domain import policy
from common.domain.policy import Account, IdlePolicy, Load
from common.domain.scores import Draw

WAKE_COST_S = 600.0
"""Billed time of one wake."""
FIXED_WINDOWS_MIN = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 45, 60, 120)
ABOVE_BEST_AT_MOST = 0.02
HIBERNATIONS_PER_DAY_AT_MOST = 30.0
RESUMED_SOON_AT_MOST = 0.40
MIN_OBSERVED_H = 24.0
"""Of all GPUs together: a bound on less would be about chance."""


def evaluate(recorded: Recorded, draw: Draw) -> Evaluation:
    """Per folder: every policy's waste, hibernations per GPU-day and share resumed within five minutes."""
    found = Evaluation("idle")
    for folder, loads in recorded.loads.items():
        found.data.append(_described(folder, loads, recorded))
        accounts = {name: [policy.replay(load, window) for load in loads] for name, window in _policies().items()}
        found.results += [_shown(folder, name, accounts[name], draw) for name in accounts]
        _bound(found, folder, accounts, draw)
    return found


def _policies() -> dict[str, float | None]:
    """Name -> seconds of quiet before hibernating; None = never."""
    adaptive = policy.window_s(IdlePolicy.ADAPTIVE, wake_cost_s=WAKE_COST_S)
    return {
        "default (below 5 % for 3 minutes)": policy.window_s(IdlePolicy.DEFAULT),
        f"adaptive ({adaptive / 60:g} minutes)": adaptive,
        "shadow (never hibernates)": None,
        **{f"fixed {minutes} min": minutes * 60.0 for minutes in FIXED_WINDOWS_MIN},
    }


def _bound(found: Evaluation, folder: str, accounts: Mapping[str, Sequence[Account]], draw: Draw) -> None:
    adaptive = next(of for name, of in accounts.items() if name.startswith("adaptive"))
    fixed = {name: of for name, of in accounts.items() if name.startswith("fixed")}
    if policy.total(adaptive).observed_s < MIN_OBSERVED_H * 3600:
        return
    best = min(fixed, key=lambda name: _wasted(fixed[name]) or 0.0)
    pairs = list(zip(adaptive, fixed[best], strict=True))
    above = measured(pairs, _above, draw, len(pairs))
    daily = measured(adaptive, _per_day, draw, len(adaptive))
    soon = measured(adaptive, _resumed_soon, draw, len(adaptive))
    waste = f"{folder}: adaptive, wasted share above the best fixed window ({best})"
    found.bounds.append(Bound(waste, "at most", ABOVE_BEST_AT_MOST, above))
    found.bounds.append(
        Bound(f"{folder}: adaptive, hibernations per GPU-day", "at most", HIBERNATIONS_PER_DAY_AT_MOST, daily)
    )
    if soon.value is not None:
        name = f"{folder}: adaptive, share resumed within 5 minutes"
        found.bounds.append(Bound(name, "at most", RESUMED_SOON_AT_MOST, soon))


def _shown(folder: str, name: str, accounts: Sequence[Account], draw: Draw) -> dict[str, Any]:
    whole = policy.total(accounts)
    return {
        "folder": folder,
        "policy": name,
        "gpus": len(accounts),
        "gpu_hours": round(whole.observed_s / 3600, 2),
        "idle_share": round(whole.idle_s / whole.observed_s, 4) if whole.observed_s else None,
        "wasted_share": measured(accounts, _wasted, draw, len(accounts)).shown(),
        "hibernations": whole.hibernations,
        "hibernations_per_day": measured(accounts, _per_day, draw, len(accounts)).shown(),
        "resumed_within_5_min": measured(accounts, _resumed_soon, draw, len(accounts)).shown(),
    }


def _described(folder: str, loads: Sequence[Load], recorded: Recorded) -> dict[str, Any]:
    return {
        "folder": folder,
        "files": recorded.files_of("utilisation", folder),
        "series": len(loads),
        "n": sum(len(load.at) for load in loads),
        "dropped_rows": recorded.dropped_of("utilisation", folder),
        "wake_cost_s": WAKE_COST_S,
        **span(at for load in loads for at in (load.at[0], load.at[-1])),
    }


def _wasted(accounts: Sequence[Account]) -> float | None:
    return policy.total(accounts).wasted_share(WAKE_COST_S)


def _per_day(accounts: Sequence[Account]) -> float | None:
    return policy.total(accounts).hibernations_per_day


def _resumed_soon(accounts: Sequence[Account]) -> float | None:
    return policy.total(accounts).resumed_soon_share


def _above(pairs: Sequence[tuple[Account, Account]]) -> float | None:
    ours, best = (_wasted(side) for side in zip(*pairs, strict=True))
    return ours - best if ours is not None and best is not None else None
