"""Logistic regression in plain Python: Newton's method on standardised features, with a penalty per feature. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_STEPS = 25
"""Newton's method on this convex problem is done within ten steps; more means that it swings."""
TOLERANCE = 1e-5
MAX_LOGIT = 30.0
MIN_CURVATURE = 1e-6
MIN_DEVIATION = 1e-9
"""A feature that varies less than this is a constant: it is left as it is and earns no weight."""


@dataclass(frozen=True)
class Fit:
    """chance = sigmoid(intercept + sum of weight * (feature - mean) / deviation)."""

    intercept: float
    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def chance(self, features: Sequence[float]) -> float:
        logit = self.intercept
        for weight, value, mean, deviation in zip(self.weights, features, self.means, self.deviations, strict=True):
            logit += weight * (value - mean) / deviation
        return sigmoid(logit)


def fit(
    rows: Sequence[Sequence[float]], outcomes: Sequence[bool], *, penalties: Sequence[float], row_weight: float = 1.0
) -> Fit:
    """The weights that are likeliest under a normal prior of precision `penalties` on each standardised weight.

    `row_weight` < 1 says that neighbouring rows tell the same story. Raises ValueError without rows. All outcomes
    alike are no problem: the intercept is held as if half a case of each kind had been seen besides.
    """
    if not rows:
        raise ValueError("no rows to fit")
    means, deviations = _standard(rows)
    scaled = [
        (1.0, *((v - m) / d for v, m, d in zip(row, means, deviations, strict=True))) for row in rows
    ]  # fmt: skip
    rate = (sum(outcomes) + 0.5) / (len(outcomes) + 1)
    weights = [logit(rate), *(0.0 for _ in penalties)]
    held = [1e-3, *penalties]
    prior = list(weights)
    for _ in range(MAX_STEPS):
        gradient, curvature = _derivatives(scaled, outcomes, weights, row_weight)
        for i, penalty in enumerate(held):
            gradient[i] -= penalty * (weights[i] - prior[i])
            curvature[i][i] += penalty
        step = _solve(curvature, gradient)
        longest = max(map(abs, step))
        shorten = min(1.0, 4.0 / longest) if longest else 1.0
        weights = [weight + shorten * change for weight, change in zip(weights, step, strict=True)]
        if longest < TOLERANCE:
            break
    return Fit(weights[0], tuple(weights[1:]), tuple(means), tuple(deviations))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-MAX_LOGIT, min(MAX_LOGIT, value))))


def logit(share: float) -> float:
    """Log-odds of a share strictly between 0 and 1."""
    return math.log(share / (1 - share))


def _standard(rows: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    columns = list(zip(*rows, strict=True))
    means = [math.fsum(column) / len(rows) for column in columns]
    spreads = [
        math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(rows))
        for column, mean in zip(columns, means, strict=True)
    ]
    return means, [spread if spread > MIN_DEVIATION else 1.0 for spread in spreads]


def _derivatives(
    rows: Sequence[Sequence[float]], outcomes: Sequence[bool], weights: Sequence[float], row_weight: float
) -> tuple[list[float], list[list[float]]]:
    """Gradient and curvature of the log-likelihood; only the lower triangle is summed, then mirrored."""
    size = len(weights)
    gradient = [0.0] * size
    curvature = [[0.0] * size for _ in range(size)]
    for row, outcome in zip(rows, outcomes, strict=True):
        chance = sigmoid(sum(map(float.__mul__, weights, row)))
        miss = (outcome - chance) * row_weight
        bend = max(MIN_CURVATURE, chance * (1 - chance)) * row_weight
        for i, value in enumerate(row):
            gradient[i] += miss * value
            line, bent = curvature[i], bend * value
            for j in range(i + 1):
                line[j] += bent * row[j]
    for i in range(size):
        for j in range(i):
            curvature[j][i] = curvature[i][j]
    return gradient, curvature


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Gauss with pivots; the penalties keep the matrix positive definite."""
    size = len(right)
    lines = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(lines[row][i]))
        lines[i], lines[pivot] = lines[pivot], lines[i]
        for below in lines[i + 1 :]:
            factor = below[i] / lines[i][i]
            for column in range(i, size + 1):
                below[column] -= factor * lines[i][column]
    found = [0.0] * size
    for i in reversed(range(size)):
        known = sum(lines[i][column] * found[column] for column in range(i + 1, size))
        found[i] = (lines[i][size] - known) / lines[i][i]
    return found
