"""What the waiting rule saves: every past moment is a purchase that could wait, and pays what was offered then.

Costs are summed in money, each series in units of its own mean price, so that dear GPUs weigh no more than cheap ones.
The bound holds for markets whose prices come back: Vast.ai (spot and on-demand together), and the cheapest of a list
over several providers. One provider's list price changes for good; there the rule is reported and not recommended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.cli.evaluation.prices import MIN_POINTS, UNITS, Market, described, markets_of
from common.cli.evaluation.readers import Recorded
from common.cli.evaluation.report import ENOUGH, Bound, Evaluation, Measured, measured, span
from common.domain import waiting
from common.domain.scores import Draw
from common.domain.series import DAY_S, HOUR_S, Series
from common.domain.waiting import Purchase

WAITS: Mapping[int, tuple[int, ...]] = {DAY_S: (1, 3, 7), HOUR_S: (6, 24)}
"""By step, in steps."""
GAP_CLOSED_AT_LEAST = 0.40


def evaluate(recorded: Recorded, draw: Draw) -> Evaluation:
    """Per folder, market and longest wait: what was saved, what hindsight would have saved, how much of that."""
    found = Evaluation("waiting")
    markets = markets_of(recorded, "lowest")
    found.data = [described(folder, markets, recorded) for folder in sorted({market.folder for market in markets})]
    for step_s, waits in WAITS.items():
        for wait in waits:
            pooled: dict[tuple[str, str], list[list[Purchase]]] = defaultdict(list)
            for market, named in sorted(markets.items()):
                if market.step_s != step_s:
                    continue
                series = [s for s in named.values() if len(s) >= MIN_POINTS]
                bought = [purchases for s in series if (purchases := _weighed(s, wait))]
                if bought:
                    found.results.append(_shown(market, series, wait, bought, draw))
                    if market.comes_back:
                        pooled[market.folder, market.provider].extend(bought)
            for (folder, provider), bought in pooled.items():
                closed = _measured(bought, waiting.gap_closed, draw)
                if closed.n >= ENOUGH and closed.value is not None:
                    name = (
                        f"{folder}: {provider}, waiting at most {wait} {UNITS[step_s]}: share of the oracle gap closed"
                    )
                    found.bounds.append(Bound(name, "at least", GAP_CLOSED_AT_LEAST, closed))
    return found


def _weighed(series: Series, wait: int) -> list[Purchase]:
    mean = sum(series.usd) / len(series)
    return [
        replace(p, now=p.now / mean, rule=p.rule / mean, oracle=p.oracle / mean, blind=p.blind / mean)
        for p in waiting.backtest(series, wait)
    ]


def _shown(
    market: Market, series: Sequence[Series], wait: int, bought: Sequence[Sequence[Purchase]], draw: Draw
) -> dict[str, Any]:
    every = [p for purchases in bought for p in purchases]
    return {
        "folder": market.folder,
        "market": market.name,
        "max_wait": f"{wait} {UNITS[market.step_s]}",
        "series": len(bought),
        "n": len(every),
        **span(tick * market.step_s for s in series for tick in (s.ticks[0], s.ticks[-1])),
        "saved_share": _measured(bought, waiting.saved_share, draw).shown(),
        "possible_share": _measured(bought, waiting.possible_share, draw).shown(),
        "blind_wait_share": round(1 - sum(p.blind for p in every) / sum(p.now for p in every), 4),
        "gap_closed": _measured(bought, waiting.gap_closed, draw).shown(),
        "bought_at_once_share": round(sum(p.waited == 0 for p in every) / len(every), 4),
    }


def _measured(bought: Sequence[Sequence[Purchase]], statistic: Any, draw: Draw) -> Measured:
    """All three statistics are made of sums: one summed purchase stands for each series."""
    sums = [_summed(purchases) for purchases in bought]
    return measured(sums, statistic, draw, sum(map(len, bought)))


def _summed(purchases: Sequence[Purchase]) -> Purchase:
    return Purchase(
        tick=purchases[0].tick,
        now=sum(p.now for p in purchases),
        rule=sum(p.rule for p in purchases),
        oracle=sum(p.oracle for p in purchases),
        blind=sum(p.blind for p in purchases),
        waited=0,
    )
