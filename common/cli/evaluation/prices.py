"""Are the price forecasts any good? Rolling origin: each is made from what was known, and scored on what came.

"Last value with empirical bands", which the bands are held against, is the last value with the P10, P50 and P90 of that
very series' own past changes at that horizon around it: what one would publish without this product, from one series.
The same with the changes of all series of the market pooled, and the last value without any band, stand beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.cli.evaluation.readers import PriceKey, Recorded
from common.cli.evaluation.report import ENOUGH, Bound, Evaluation, Measured, measured, span
from common.domain import price
from common.domain.scores import Draw, Sample, pinball
from common.domain.series import DAY_S, HOUR_S, Series, gridded

HORIZONS: Mapping[int, tuple[int, ...]] = {DAY_S: (1, 3, 7), HOUR_S: (1, 6, 24)}
"""By step, in steps."""
UNITS = {DAY_S: "d", HOUR_S: "h"}
MIN_POINTS = 15
"""A shorter series is counted, and not scored."""
WARM_UP_SHARE = 0.4
"""Of the span of a series, only learned from."""
MIN_OWN_CHANGES = 5
"""Before so many of its own changes are known, a series has no empirical band to compare with."""
MOVES_FROM = 0.20
"""Series that change in fewer of their steps have bands of no width: only their coverage is reported."""
RMAE_AT_MOST = 1.00
PINBALL_RATIO_AT_MOST = 0.95
COVERAGE = (0.73, 0.87)
VAST = frozenset({"vast.ai", "vast", "vastai"})
OTHERS = "other providers"
LISTS = "all providers"
SHARES = (0.1, 0.5, 0.9)


class Market(NamedTuple):
    """Series that are peers of each other."""

    folder: str
    step_s: int
    provider: str
    rental_type: str

    @property
    def name(self) -> str:
        return f"{self.provider} {self.rental_type}"

    @property
    def is_vast(self) -> bool:
        return self.provider.lower() in VAST

    @property
    def comes_back(self) -> bool:
        """Prices set by which machines are free, not by one provider's list."""
        return self.provider != OTHERS

    @property
    def title(self) -> str:
        return f"{self.folder}: {self.name}, {'daily' if self.step_s == DAY_S else 'hourly'}"


@dataclass
class Score:
    """Sums over the scored forecasts of one series."""

    n: int = 0
    moves: bool = True
    last_error: float = 0.0
    served_error: float = 0.0
    last_share: float = 0.0
    shrunk: int = 0
    inside: int = 0
    bands: float = 0.0
    own_bands: float = 0.0
    pooled_bands: float = 0.0
    point: float = 0.0


def evaluate(recorded: Recorded, draw: Draw) -> Evaluation:
    """Per folder, market and horizon: rMAE, pinball, coverage, and the bounds that apply."""
    found = Evaluation("prices")
    markets = markets_of(recorded, "median")
    for folder in sorted({market.folder for market in markets}):
        found.data.append(described(folder, markets, recorded))
    for market, named in sorted(markets.items()):
        series = [s for s in named.values() if len(s) >= MIN_POINTS]
        for horizon in HORIZONS[market.step_s]:
            scores = [score for score in score_all(series, horizon) if score.n]
            if scores:
                _report(found, market, series, horizon, scores, draw)
    return found


def markets_of(recorded: Recorded, which: str) -> dict[Market, dict[PriceKey, Series]]:
    """The series of each market; `which` = "median" or "lowest" price of each row."""
    markets: dict[Market, dict[PriceKey, Series]] = defaultdict(dict)
    for key, quotes in sorted(recorded.prices.items(), key=lambda item: str(item[0])):
        series = gridded(getattr(quotes, which))
        provider = LISTS if not key.market else key.market if key.market.lower() in VAST else OTHERS
        markets[Market(key.folder, series.step_s, provider, key.rental_type)][key] = series
    return markets


def score_all(series: Sequence[Series], horizon: int) -> list[Score]:
    """One Score for each series."""
    scores = [Score(moves=s.moving_share >= MOVES_FROM) for s in series]
    own, pooled = [Sample() for _ in series], Sample()
    open_: deque[tuple[int, price.Origin]] = deque()
    begins = [s.ticks[0] + WARM_UP_SHARE * (s.ticks[-1] - s.ticks[0]) for s in series]
    for which, origin, guess in price.replay(series, horizon):
        while open_ and open_[0][1].tick + horizon <= origin.tick:
            past_of, past = open_.popleft()
            if past.actual is not None:
                own[past_of].add(past.actual - past.last)
                pooled.add(past.actual - past.last)
        open_.append((which, origin))
        if origin.tick >= begins[which] and origin.actual is not None and len(own[which]) >= MIN_OWN_CHANGES:
            _score(scores[which], origin, origin.actual, guess, own[which], pooled)
    return scores


def _score(
    score: Score, origin: price.Origin, actual: float, guess: price.Guess, own: Sample, pooled: Sample
) -> None:  # fmt: skip
    score.n += 1
    score.last_error += abs(actual - origin.last)
    score.served_error += abs(actual - guess.point)
    score.last_share += abs(math.expm1(origin.last - actual))
    score.shrunk += guess.shrunk
    score.inside += guess.low - 1e-12 <= actual <= guess.high + 1e-12
    for share, value in zip(SHARES, (guess.low, guess.point, guess.high), strict=True):
        score.bands += pinball(actual, value, share)
        score.own_bands += pinball(actual, origin.last + own.quantile(share), share)
        score.pooled_bands += pinball(actual, origin.last + pooled.quantile(share), share)
        score.point += pinball(actual, origin.last, share)


def _report(
    found: Evaluation, market: Market, series: Sequence[Series], horizon: int, scores: Sequence[Score], draw: Draw
) -> None:  # fmt: skip
    ahead = f"{horizon} {UNITS[market.step_s]}"
    moving, quiet = [s for s in scores if s.moves], [s for s in scores if not s.moves]
    rmae = measured(scores, _rmae, draw, _n(scores))
    ratio = measured(moving, lambda some: _ratio(some, "own_bands"), draw, _n(moving))
    coverage = measured(moving, _coverage, draw, _n(moving))
    if _n(scores) >= ENOUGH:
        found.bounds.append(Bound(f"{market.title}, {ahead}: rMAE", "at most", RMAE_AT_MOST, rmae))
    if market.is_vast and market.step_s == DAY_S and _n(moving) >= ENOUGH:
        name = f"{market.title}, {ahead}: pinball / last value with its own empirical bands"
        found.bounds.append(Bound(name, "at most", PINBALL_RATIO_AT_MOST, ratio))
        found.bounds.append(Bound(f"{market.title}, {ahead}: 80 % coverage", "within", COVERAGE, coverage))
    found.results.append(
        {
            "folder": market.folder,
            "market": market.name,
            "step_s": market.step_s,
            "horizon": ahead,
            "series": len(scores),
            "moving_series": len(moving),
            "n": _n(scores),
            **span(tick * market.step_s for s in series for tick in (s.ticks[0], s.ticks[-1])),
            "rmae": rmae.shown(),
            "served_shrunk_share": round(sum(s.shrunk for s in scores) / _n(scores), 4),
            "last_value_error": Measured(_mean(scores, "last_share"), None, _n(scores)).shown(),
            "pinball_x100": {name: _pinball(moving, name) for name in ("bands", "own_bands", "pooled_bands", "point")},
            "pinball_over_last_value_own_bands": ratio.shown(),
            "pinball_over_last_value_pooled_bands": _compared(moving, "pooled_bands", draw),
            "pinball_over_last_value_point": _compared(moving, "point", draw),
            "coverage80": coverage.shown(),
            "coverage80_of_quiet_series": measured(quiet, _coverage, draw, _n(quiet)).shown(),
        }
    )


def described(folder: str, markets: Mapping[Market, Mapping[PriceKey, Series]], recorded: Recorded) -> dict[str, Any]:
    here = [
        (market, s) for market, named in markets.items() if market.folder == folder for s in named.values() if len(s)
    ]
    return {
        "folder": folder,
        "files": recorded.files_of("prices", folder),
        "series": len(here),
        "scored_series": sum(len(s) >= MIN_POINTS for _, s in here),
        "n": sum(len(s) for _, s in here),
        "dropped_rows": recorded.dropped_of("prices", folder),
        **span(tick * s.step_s for _, s in here for tick in (s.ticks[0], s.ticks[-1])),
    }


def _n(scores: Sequence[Score]) -> int:
    return sum(score.n for score in scores)


def _mean(scores: Sequence[Score], field: str) -> float | None:
    return sum(getattr(score, field) for score in scores) / _n(scores) if scores else None


def _rmae(scores: Sequence[Score]) -> float | None:
    """1 where no price moved: both were right."""
    last = sum(score.last_error for score in scores)
    return sum(score.served_error for score in scores) / last if last else 1.0


def _ratio(scores: Sequence[Score], against: str) -> float | None:
    other = sum(getattr(score, against) for score in scores)
    return sum(score.bands for score in scores) / other if other else None


def _compared(scores: Sequence[Score], against: str, draw: Draw) -> dict[str, Any]:
    return measured(scores, lambda some: _ratio(some, against), draw, _n(scores)).shown()


def _coverage(scores: Sequence[Score]) -> float | None:
    return sum(score.inside for score in scores) / _n(scores) if scores else None


def _pinball(scores: Sequence[Score], field: str) -> float | None:
    """Mean over the three quantiles of the log price, times 100."""
    mean = _mean(scores, field)
    return round(mean / len(SHARES) * 100, 3) if mean is not None else None
