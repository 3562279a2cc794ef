"""Does one feature alone give a label away? Single-feature AUC on the first rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.data.encoding.columns import Feature, Hash, Id, Number
from espace.data.encoding.table import Columns, on_all_cores
from espace.data.encoding.vocabulary import key_of

_ROWS = 200_000
_POSITIVES = 20

Counts = NDArray[np.bool_] | NDArray[np.int64]


class LeakSample:
    """Keeps the scalar features and the labels of the first rows, and judges each feature by itself."""

    def __init__(self, features: Sequence[Feature], chain: Chain) -> None:
        self.features = [f for f in features if isinstance(f, Id | Hash | Number)]
        self.chain = chain
        self._rows = 0
        self._values: dict[str, list[NDArray[np.float64] | NDArray[np.int64]]] = {f.name: [] for f in self.features}
        self._labels: list[NDArray[np.int8]] = []

    def add(self, table: Columns, labels: NDArray[np.int8]) -> None:
        """See one piece, ignored after the first rows; labels: (rows, stages but the root), -1 for unknown."""
        take = min(len(labels), _ROWS - self._rows)
        if take <= 0:
            return
        self._rows += take
        self._labels.append(labels[:take])
        for feature in self.features:
            if isinstance(feature, Number):
                self._values[feature.name].append(np.nan_to_num(table.number_of(feature)[0][:take]))
            else:
                self._values[feature.name].append(key_of(table.category_of(feature)[0].slice(0, take)))

    def aucs(self) -> dict[str, tuple[str, float]]:
        """`{feature: (stage that it tells best, AUC)}`, for features that tell any stage with enough positives."""
        labels = np.concatenate(self._labels) if self._labels else np.empty((0, len(self.chain.stages) - 1), np.int8)

        def judge(feature: Feature) -> tuple[str, float]:
            values = np.concatenate(self._values[feature.name]) if self._labels else np.empty(0)
            auc: Callable[[NDArray[np.int8]], float] = partial(auc_of_number, values)
            if values.dtype == np.int64:
                auc = partial(auc_of_category, pa.array(values).dictionary_encode().indices.to_numpy())
            by_stage = {s: auc(labels[:, i]) for i, s in enumerate(self.chain.stages[1:])}
            return max(by_stage.items(), key=lambda found: found[1])

        judged = on_all_cores(judge, self.features)
        return {feature.name: found() for feature, found in zip(self.features, judged, strict=True)}


def auc_of_number(values: NDArray[np.number], label: NDArray[np.int8]) -> float:
    """AUC of a number, (rows,), either way round."""
    known = label >= 0
    auc = _auc(values[known], label[known] == 1, label[known] == 0)
    return max(auc, 1 - auc)


def auc_of_category(codes: NDArray[np.int32], label: NDArray[np.int8]) -> float:
    """AUC, either way round, of a category's mean label in one half of the rows, drawn to the overall mean by one row,
    on the other half. `codes`, (rows,), are categories as numbers from 0 on."""
    known = label >= 0
    codes, positive = codes[known], label[known] == 1
    learns = np.random.default_rng(0).random(len(codes)) < 0.5
    counts = np.bincount(codes * np.int64(4) + 2 * learns + positive, minlength=4 * (1 + codes.max(initial=0)))
    (downs, ups), (misses, hits) = counts.reshape(-1, 2, 2).transpose(1, 2, 0)
    prior = hits.sum() / max(learns.sum(), 1)
    auc = _auc((hits + prior) / (hits + misses + 1), ups, downs)
    return max(auc, 1 - auc)


def _auc(scores: NDArray[np.number], positives: Counts, negatives: Counts) -> float:
    """Exact AUC, ties counting one half (Mann-Whitney U), of scores with so many rows of either kind, (n,) each; 0.5
    where fewer than `_POSITIVES` are of one kind."""
    unique, place = np.unique(scores, return_inverse=True)
    ups, downs = (np.bincount(place, weights=w, minlength=len(unique)) for w in (positives, negatives))
    if min(ups.sum(), downs.sum()) < _POSITIVES:
        return 0.5
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / (ups.sum() * downs.sum()))
