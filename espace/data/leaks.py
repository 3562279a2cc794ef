"""Does one feature alone give a label away? Single-feature AUC on the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espace.chain import Chain
from espace.data.columns import Feature, Hash, Id, Number, column_of
from espace.data.table import Columns
from espace.data.vocabulary import key_of

_ROWS = 200_000
_POSITIVES = 20


class LeakSample:
    """Keeps the scalar features and the labels of the first rows, and judges each feature by itself."""

    def __init__(self, features: Sequence[Feature], chain: Chain) -> None:
        self.features = [f for f in features if isinstance(f, Id | Hash | Number)]
        self.chain = chain
        self._rows = 0
        self._values: dict[str, list[NDArray[np.float64] | NDArray[np.int64]]] = {f.name: [] for f in self.features}
        self._labels: list[NDArray[np.int8]] = []

    def add(self, table: Columns, labels: NDArray[np.int8]) -> None:
        """See one piece; labels: (rows, stages but the root), -1 for unknown. Pieces after the first rows are ignored."""
        take = min(len(labels), _ROWS - self._rows)
        if take <= 0:
            return
        self._rows += take
        self._labels.append(labels[:take])
        for feature in self.features:
            column = column_of(feature)
            if isinstance(feature, Number):
                self._values[feature.name].append(np.nan_to_num(table.numbers(column)[:take]))
            else:
                self._values[feature.name].append(key_of(table.categories(column).slice(0, take)))

    def aucs(self) -> dict[str, tuple[str, float]]:
        """`{feature: (stage that it tells best, AUC)}`, for features that tell any stage with enough positives."""
        found: dict[str, tuple[str, float]] = {}
        labels = np.concatenate(self._labels) if self._labels else np.empty((0, len(self.chain.stages) - 1), np.int8)
        for feature in self.features:
            values = np.concatenate(self._values[feature.name]) if self._labels else np.empty(0)
            by_stage = {s: _auc_of(values, labels[:, i]) for i, s in enumerate(self.chain.stages[1:])}
            best = max(by_stage, key=lambda s: by_stage[s])
            found[feature.name] = (best, by_stage[best])
        return found


def _auc_of(values: NDArray[Any], label: NDArray[np.int8]) -> float:
    """AUC of a number, either way round, or of a category's mean label learnt on the other half of the rows."""
    known = label >= 0
    values, positive = values[known], label[known] == 1
    if values.dtype == np.int64:
        half = np.random.default_rng(0).random(len(values)) < 0.5
        values, positive = _mean_label(values, positive, half), positive[~half]
    if min(positive.sum(), (~positive).sum()) < _POSITIVES:
        return 0.5
    auc = rank_auc(values, positive)
    return max(auc, 1 - auc)


def _mean_label(keys: NDArray[np.int64], positive: NDArray[np.bool_], learn: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For the rows not in `learn`, the mean label of their key in `learn`, drawn to the overall mean by one row."""
    unique, codes = np.unique(keys, return_inverse=True)
    rows = np.bincount(codes[learn], minlength=len(unique))
    hits = np.bincount(codes[learn], weights=positive[learn], minlength=len(unique))
    prior = positive[learn].mean() if learn.any() else 0.5
    means: NDArray[np.float64] = ((hits + prior) / (rows + 1))[codes[~learn]]
    return means


def rank_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Exact AUC, ties counting one half (Mann-Whitney U)."""
    unique, codes = np.unique(scores, return_inverse=True)
    ups = np.bincount(codes[positive], minlength=len(unique))
    downs = np.bincount(codes[~positive], minlength=len(unique))
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / (ups.sum() * downs.sum()))
