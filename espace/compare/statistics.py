"""Which differences are real: exact AUC, its bootstrap over rows, Student's t over seeds, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPLICATES = 500
LEVEL = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Scores of rows, put in order once, so that an AUC with other row weights costs one pass over the rows.

    positives: (positives,) row numbers; negatives: (negatives,) row numbers by rising score; low, high: (positives,) how many
    negatives score below each positive, and how many not above it; weights: (rows,).
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weights: Floats

    @classmethod
    def of(cls, scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any] | None = None) -> Ranked:
        """scores, labels (0 or 1) and weights: (rows,)."""
        positives, negatives = (np.flatnonzero(labels == label) for label in (1, 0))
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        low, high = (np.searchsorted(scores[negatives], scores[positives], side) for side in ("left", "right"))
        own = np.ones(len(scores)) if weights is None else weights.astype(np.float64)
        return cls(positives, negatives, low, high, own)

    def auc(self, times: NDArray[Any] | None = None) -> float:
        """Weighted AUC, ties counting one half; NaN unless both classes have weight. `times`: (rows,), how often each row is
        there."""
        weights = self.weights if times is None else self.weights * times
        under = np.concatenate([[0.0], np.cumsum(weights[self.negatives])])
        gains = weights[self.positives]
        pairs = float(gains.sum() * under[-1])
        return float(gains @ (under[self.low] + under[self.high])) / (2 * pairs) if pairs else math.nan


def replicates(judged: Sequence[Ranked], count: int = REPLICATES, seed: int = 0) -> Floats:
    """AUCs on rows drawn with replacement, the same rows for all of `judged`: (len(judged), count)."""
    rows = len(judged[0].weights)
    random = np.random.default_rng([seed, rows])
    found = np.empty((len(judged), count))
    for draw in range(count):
        times = np.bincount(random.integers(rows, size=rows), minlength=rows)
        found[:, draw] = [ranked.auc(times) for ranked in judged]
    return found


def tail(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with whole degrees of freedom, in closed form (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= (2 * k - 1 + odd) / (2 * k + odd) * cosine**2
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1 - inside))


def quantile(freedom: int, level: float = LEVEL) -> float:
    """The t between which and -t Student's t lies with probability `level`."""
    low, high = 0.0, 1e9
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > 1 - level else (low, middle)
    return high


@dataclass(frozen=True)
class Difference:
    """A mean over seeds, its interval, and the p-value of its being 0; NaN where nothing tells them."""

    mean: float
    low: float
    high: float
    p: float


def difference(by_seed: Floats, by_draw: Floats | None = None) -> Difference:
    """The mean of `by_seed`, (seeds,), with what varies between seeds and, where given, between draws of the test rows.

    by_draw: (draws,), the mean over the seeds on resampled rows. The two variances add up; the degrees of freedom of their
    sum are Welch's and Satterthwaite's (Satterthwaite, 1946, eq. 17), rounded down.
    """
    mean = float(by_seed.mean())
    parts = [(by_seed.var(ddof=1) / len(by_seed), len(by_seed) - 1)] if len(by_seed) > 1 else []
    if by_draw is not None and (drawn := by_draw[~np.isnan(by_draw)]).size > 1:
        parts.append((drawn.var(ddof=1), drawn.size - 1))
    variance = float(sum(v for v, _ in parts))
    if not parts or math.isnan(mean):
        return Difference(mean, math.nan, math.nan, math.nan)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    freedom = max(1, int(variance**2 / sum(v**2 / f for v, f in parts)))
    wide, error = quantile(freedom), math.sqrt(variance)
    return Difference(mean, mean - wide * error, mean + wide * error, tail(mean / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm, 1979): the probability of one false alarm among all stays below the level."""
    found, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = highest
    return found
