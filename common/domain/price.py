"""What a price will be, how sure that is, and what to bid. Pure, and fast enough for the time of a request.

Nothing beats the last value on most markets, so the last value is served unless the half-way shrink to the 7-day mean
has proven itself on that very series. The bands are the quantiles of past errors, divided by how much the series
itself has moved lately: that is where the skill is. Everything is learned in order of time, from what was known then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from common.domain.model import Model
from common.domain.scores import Sample
from common.domain.series import DAY_S, HOUR_S, Series

MEAN_S = 7 * DAY_S
MOVES_S = 14 * DAY_S
"""How far back a series' own restlessness is measured."""
SHRINK = 0.5
"""The point forecast that competes with the last value goes this far towards the 7-day mean."""
LEAN = 0.25
"""The bands always lean this far towards the 7-day mean: prices far from it come back more often than they go on."""
PRIOR_MOVES = 7
"""Moves of the peers that count as the series' own: a short history is not yet a calm one."""
LOPSIDED_WINDOWS = 10
"""Separate windows of one horizon from which the bands are half as lopsided as the past was."""
WIDTH_WINDOWS = 3
"""The same for their width, which begins as PRIOR_WIDTH says: peers that jump together are one window, not many."""
MIN_SCORED = 15
PROVEN_Z = 3.0
"""Standard errors by which the shrink must have won: hundreds of series are looked at, and few may win by luck."""
MAX_MOVE = math.log(2)
"""A price that more than doubles or halves at once has changed for good: it says no more about its restlessness."""
PRIOR_WIDTH = 1.606
"""P90 of a normal variable in units of its mean absolute value."""
MAX_WIDTH = 2.0
"""Bands never reach further than this many prior widths: a jump out of long calm is not the size of the next one."""
PRIOR_GROWTH = 0.35
"""Errors grow with this power of the horizon (measured: those of 7 days are about twice those of one)."""
MAX_LOG = 700.0
"""The greatest number whose exponential is still finite, nearly."""
TREND_SHARE = 0.01
"""A forecast nearer to the present price than this is no trend."""
MIN_BID_ORIGINS = 20
OUTBID_AT_MOST = 0.10
"""Accepted chance that a recommended bid is exceeded within a day."""


class Forecast(Model):
    """One price `horizon_s` ahead, in USD per hour: 80 % of the prices should fall between p10 and p90."""

    horizon_s: int
    p10: float
    p50: float
    p90: float
    method: Literal["last_value", "half_way_to_7_day_mean"]
    scored: int
    """Past forecasts of this series at this horizon that are scored."""
    rmae: float | None
    """Error of the shrink over that of the last value, so far; below 1 it was better. None = the price never moved."""
    trend: Literal["up", "down"] | None
    """Only where skill is proven on this very series."""


class Bid(Model):
    """What to bid, and the chance that the market exceeds it; None = the series is too coarse to say."""

    usd_per_hour: float
    outbid_within_1h: float | None
    outbid_within_24h: float | None
    n: int
    """Past days that were looked at."""


class Origin(NamedTuple):
    """A moment at which a forecast is made, and what happened; prices are natural logarithms."""

    tick: int
    last: float
    mean: float
    """Of the last 7 days."""
    moves: float
    """Sum of the absolute changes from tick to tick of the last 14 days."""
    moved: int
    """How many there were."""
    move: float | None
    """The newest of them; None after a gap."""
    actual: float | None
    """The price one horizon later; None = a gap, or not yet known."""


class Guess(NamedTuple):
    """A forecast as logarithms."""

    low: float
    point: float
    high: float
    shrunk: bool


@dataclass
class Skill:
    """How the shrink has done against the last value on one series."""

    scored: int = 0
    gain: float = 0.0
    gain_squares: float = 0.0
    last_error: float = 0.0
    shrunk_error: float = 0.0

    def score(self, origin: Origin, actual: float) -> None:
        last, shrunk = abs(actual - origin.last), abs(actual - _towards_mean(origin, SHRINK))
        self.scored += 1
        self.gain += last - shrunk
        self.gain_squares += (last - shrunk) ** 2
        self.last_error += last
        self.shrunk_error += shrunk

    def is_proven(self, horizon: int) -> bool:
        """Neighbouring origins share all but one step of their horizon, so that many count as one."""
        error = math.sqrt(self.gain_squares * horizon)
        return self.scored >= MIN_SCORED and self.gain > PROVEN_Z * error

    @property
    def rmae(self) -> float | None:
        return self.shrunk_error / self.last_error if self.last_error else None


@dataclass
class Peers:
    """What all series of one market have taught: how much they move, and how errors spread in units of that."""

    moves: float = 0.0
    moved: int = 0
    first: int | None = None
    latest: int = 0
    signed: Sample = field(default_factory=Sample)
    absolute: Sample = field(default_factory=Sample)

    def learn_move(self, move: float) -> None:
        self.moves += move
        self.moved += 1

    def learn_error(self, error: float, tick: int) -> None:
        """An error in units of its series' scale; in order of time."""
        self.first = tick if self.first is None else self.first
        self.latest = tick
        self.signed.add(error)
        self.absolute.add(abs(error))

    def scale(self, origin: Origin) -> float:
        """Mean absolute change per tick of the series, with the peers' as its prior."""
        prior = PRIOR_MOVES if self.moved else 0
        weight = origin.moved + prior
        return (origin.moves + prior * (self.moves / max(1, self.moved))) / weight if weight else 0.0

    def spread(self, horizon: int) -> tuple[float, float]:
        """P10 and P90 of the errors in units of the scale, as far as separate windows have shown them."""
        prior = PRIOR_WIDTH * horizon**PRIOR_GROWTH
        if self.first is None:
            return -prior, prior
        windows = 1 + (self.latest - self.first) / horizon
        known = windows / (windows + WIDTH_WINDOWS)
        lopsided = windows / (windows + LOPSIDED_WINDOWS)
        width = known * self.absolute.quantile(0.8) + (1 - known) * prior
        low = lopsided * self.signed.quantile(0.1) - (1 - lopsided) * width
        high = lopsided * self.signed.quantile(0.9) + (1 - lopsided) * width
        return max(low, -MAX_WIDTH * prior), min(high, MAX_WIDTH * prior)


def forecasts(many: Sequence[Series], horizon: int) -> list[Forecast | None]:
    """The newest forecast of each series, `horizon` ticks ahead; None for an empty one. All are peers of each other.

    O(n log n) in the number of points of all of them.
    """
    found: list[Forecast | None] = [None] * len(many)
    skills = [Skill() for _ in many]
    for which, origin, guess in replay(many, horizon, skills):
        if origin.tick == many[which].ticks[-1]:
            found[which] = _shown(origin, guess, skills[which], horizon * many[which].step_s)
    return found


def replay(
    many: Sequence[Series], horizon: int, skills: Sequence[Skill] | None = None
) -> Iterator[tuple[int, Origin, Guess]]:
    """Every forecast that would have been made: (index of the series, origin, guess), in order of time.

    A guess knows only prices up to its origin's tick. All series have the same step.
    """
    skills = skills or [Skill() for _ in many]
    peers = Peers()
    open_: deque[tuple[int, Origin, float]] = deque()
    merged = sorted((origin.tick, which, origin) for which, s in enumerate(many) for origin in origins(s, horizon))
    for tick, which, origin in merged:
        while open_ and open_[0][1].tick + horizon <= tick:
            _learn(*open_.popleft(), skills, peers, horizon)
        if origin.move is not None:
            peers.learn_move(origin.move)
        scale = peers.scale(origin)
        open_.append((which, origin, scale))
        yield which, origin, _guess(origin, scale, skills[which], peers, horizon)


def origins(series: Series, horizon: int) -> list[Origin]:
    """One per tick of the series, in one pass."""
    logs = [math.log(usd) for usd in series.usd]
    later = dict(zip(series.ticks, logs, strict=True))
    sums, moves, moved = [0.0], [0.0], [0]
    found = []
    week = fortnight = 0
    for i, tick in enumerate(series.ticks):
        near = i > 0 and series.ticks[i - 1] == tick - 1
        move = min(MAX_MOVE, abs(logs[i] - logs[i - 1])) if near else None
        sums.append(sums[-1] + logs[i])
        moves.append(moves[-1] + (move or 0.0))
        moved.append(moved[-1] + near)
        while (tick - series.ticks[week]) * series.step_s >= MEAN_S:
            week += 1
        while (tick - series.ticks[fortnight]) * series.step_s >= MOVES_S:
            fortnight += 1
        mean = (sums[-1] - sums[week]) / (i + 1 - week)
        recent, count = moves[-1] - moves[fortnight], moved[-1] - moved[fortnight]
        found.append(Origin(tick, logs[i], mean, recent, count, move, later.get(tick + horizon)))
    return found


def _learn(
    which: int, origin: Origin, scale: float, skills: Sequence[Skill], peers: Peers, horizon: int
) -> None:  # fmt: skip
    if origin.actual is None:
        return
    skills[which].score(origin, origin.actual)
    if scale > 0:
        peers.learn_error((origin.actual - _towards_mean(origin, LEAN)) / scale, origin.tick + horizon)


def _guess(origin: Origin, scale: float, skill: Skill, peers: Peers, horizon: int) -> Guess:
    shrunk = skill.is_proven(horizon)
    point = _towards_mean(origin, SHRINK) if shrunk else origin.last
    if scale <= 0:
        return Guess(point, point, point, shrunk)
    low, high = peers.spread(horizon)
    centre = _towards_mean(origin, LEAN)
    return Guess(min(point, centre + scale * low), point, max(point, centre + scale * high), shrunk)


def _towards_mean(origin: Origin, share: float) -> float:
    return origin.last + share * (origin.mean - origin.last)


def _shown(origin: Origin, guess: Guess, skill: Skill, horizon_s: int) -> Forecast:
    p10, p50, p90 = (math.exp(min(log, MAX_LOG)) for log in (guess.low, guess.point, guess.high))
    change = p50 / math.exp(origin.last) - 1
    return Forecast(
        horizon_s=horizon_s,
        p10=p10,
        p50=p50,
        p90=p90,
        method="half_way_to_7_day_mean" if guess.shrunk else "last_value",
        scored=skill.scored,
        rmae=skill.rmae,
        trend=("up" if change > 0 else "down") if guess.shrunk and abs(change) > TREND_SHARE else None,
    )


def discount(usd_per_hour: float, on_demand_usd_per_hour: float) -> float:
    """Share saved against renting on demand; negative when the spot price is the dearer one."""
    return 1 - usd_per_hour / on_demand_usd_per_hour


def recommended_bid(series: Series, *, at_most: float, accepted: float = OUTBID_AT_MOST) -> Bid | None:
    """The lowest bid that the market would have exceeded within a day on no more than `accepted` of the past days.

    Never above `at_most` USD per hour (what on-demand costs): the chances are those of the bid that is given. None
    while fewer than MIN_BID_ORIGINS days-from-a-tick are known.
    """
    day = rises(series, DAY_S // series.step_s)
    if len(day) < MIN_BID_ORIGINS:
        return None
    now = series.usd[-1]
    margin = max(0.0, day[min(len(day) - 1, math.ceil(len(day) * (1 - accepted)) - 1)])
    bid = min(at_most, now * math.exp(margin))
    hour = rises(series, HOUR_S // series.step_s) if series.step_s <= HOUR_S else []
    return Bid(
        usd_per_hour=bid,
        outbid_within_1h=chance_above(hour, math.log(bid / now)) if len(hour) >= MIN_BID_ORIGINS else None,
        outbid_within_24h=chance_above(day, math.log(bid / now)),
        n=len(day),
    )


def rises(series: Series, steps: int) -> list[float]:
    """The highest rise (log) within the next `steps` ticks, of each tick for which half of those were seen; rising."""
    logs = [math.log(usd) for usd in series.usd]
    found = []
    for i, tick in enumerate(series.ticks):
        if tick + steps > series.ticks[-1]:
            break
        ahead = [logs[j] for j in range(i + 1, min(i + 1 + steps, len(logs))) if series.ticks[j] <= tick + steps]
        if ahead and 2 * len(ahead) >= steps:
            found.append(max(ahead) - logs[i])
    return sorted(found)


def chance_above(ordered: Sequence[float], margin: float) -> float:
    """Share of the past rises above `margin`, with half a case added for what has not been seen yet."""
    above = sum(rise > margin + 1e-12 for rise in ordered)
    return (above + 0.5) / (len(ordered) + 1)
