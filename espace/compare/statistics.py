"""Which differences are real: exact AUC, its variance over test rows, Student's t over seeds, Holm's correction."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_MANY = 1_000  # degrees of freedom where rows alone tell: as good as a normal distribution
Column = NDArray[np.generic]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """The AUC of some rows, ties counting one half, and what each row has to do with it.

    auc: weighted; NaN unless both classes have weight. influence: (rows,), by how much the AUC moves when a row counts
    for more, so that the sum of their squares is the variance of the AUC over draws of the rows, and that of their
    differences the variance of a difference (DeLong et al., 1988, with row weights). rows: a digest of labels and
    weights.
    """

    auc: float
    influence: Floats
    rows: bytes

    @classmethod
    def of(cls, scores: Column, labels: Column, weights: Column | None = None) -> Ranked:
        """scores, labels (0 or 1) and weights: (rows,)."""
        counts: Floats = np.ones(len(scores)) if weights is None else weights.astype(np.float64)
        digest = hashlib.blake2b(labels.tobytes() + counts.tobytes(), digest_size=16).digest()
        classes = [np.flatnonzero(labels == label) for label in (1, 0)]
        positive, negative = (counts[rows].sum() for rows in classes)
        if not (positive and negative):
            return cls(math.nan, np.full(len(scores), math.nan), digest)
        positives, negatives = classes
        above = _below(
            scores, counts, negatives, positives
        )  # of each positive: the share of the negatives that it beats
        beaten = 1 - _below(
            scores, counts, positives, negatives
        )  # of each negative: the share of the positives above it
        auc = float(counts[positives] @ above / positive)
        influence = np.zeros(len(scores))
        influence[positives] = counts[positives] * (above - auc) / positive
        influence[negatives] = counts[negatives] * (beaten - auc) / negative
        return cls(auc, influence, digest)


def _below(scores: Column, weights: Floats, rows: NDArray[np.int64], of: NDArray[np.int64]) -> Floats:
    """The share of the weight of `rows` that scores below each row in `of`, equal scores by one half."""
    order = rows[np.argsort(scores[rows], kind="stable")]
    under = np.concatenate([[0.0], np.cumsum(weights[order])])
    low, high = (np.searchsorted(scores[order], scores[of], side) for side in ("left", "right"))
    return np.asarray((under[low] + under[high]) / (2 * under[-1]))


def tail(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= (2 * k - 1 + odd) / (2 * k + odd) * cosine**2
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1 - inside))


@cache
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


def difference(by_seed: Floats, between_rows: float | None = None) -> Difference:
    """The mean of `by_seed`, (seeds,), with what varies between seeds and, where given, between draws of the test rows.

    between_rows: the variance of the mean over draws of the rows. The two variances add up. The degrees of freedom are
    those of the seeds: Welch's and Satterthwaite's, estimated from the few seeds themselves, are too many just where
    these happen to lie close together, and made 10 % false alarms of 5 % with two seeds. With these there are never
    more than the level says, since the variance of the rows only makes that of the sum more certain. With one seed the
    rows alone tell.
    """
    mean, seeds = float(by_seed.mean()), len(by_seed)
    parts = [float(by_seed.var(ddof=1)) / seeds] if seeds > 1 else []
    if between_rows is not None and not math.isnan(between_rows):
        parts.append(between_rows)
    variance = sum(parts)
    if not parts or math.isnan(mean):
        return Difference(mean, math.nan, math.nan, math.nan)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0))
    freedom = seeds - 1 or _MANY
    wide, error = quantile(freedom), math.sqrt(variance)
    return Difference(mean, mean - wide * error, mean + wide * error, tail(mean / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm, 1979): one false alarm among all stays less likely than the level."""
    found, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = highest
    return found
