"""What features learn from the training rows, in one streaming pass: vocabularies, moments, bucket edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from espace.data.encoding.columns import Bag, Feature, Hash, Id, Number, Vector, column_of, hash_buckets, table_of
from espace.data.encoding.columns import Sequence as History
from espace.data.encoding.encode import NumberStats, transformed
from espace.data.encoding.kinds import Kind
from espace.data.encoding.table import Columns, Problems, on_all_cores
from espace.data.encoding.vocabulary import ValueCounts, Vocabulary

_SAMPLE = 200_000
_EVENTS = 1_000_000  # of a list feature, among which the most frequent is looked for
_ROUNDING = 1e-13  # of the mean: some hundred times that of one float64


class Learner:
    """Accumulates over pieces; memory grows with the distinct values only."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = list(features)
        self._hashed = {f.name: buckets for f in features if (buckets := hash_buckets(f)) is not None}
        self._counts = {
            table_of(f): ValueCounts()
            for f in features
            if isinstance(f, Id | History | Bag) and table_of(f) not in self._hashed
        }
        self._lists = {f.name: ListFacts() for f in features if isinstance(f, History | Bag)}
        self.kinds: dict[str, Kind] = {}  # by feature of categories or dates
        self._numbers = {f.name: _Moments(_keeps_sample(f)) for f in features if isinstance(f, Number)}

    def add(self, table: Columns) -> None:
        """See one piece. Raises DataError with every column that cannot be read as its feature says."""
        problems = Problems()
        for found in on_all_cores(lambda feature: self._see(feature, table), self.features):
            with problems.noted():
                found()
        problems.refuse()

    def _see(self, feature: Feature, table: Columns) -> None:
        """Learn what there is to learn; what only has to be readable is read."""
        if isinstance(feature, Number):
            numbers, kind = table.number_of(feature, self.kinds.get(feature.name))
            self._numbers[feature.name].add(transformed(numbers, feature.log1p))
            self._keep(feature, kind)
        elif isinstance(feature, Vector):
            table.vector(column_of(feature), feature.size)
        else:
            self._count(feature, table)

    def _count(self, feature: Id | Hash | History | Bag, table: Columns) -> None:
        if isinstance(feature, History | Bag):
            events = table.events_of(feature)
            values, kind = events.values, events.kind
            self._lists[feature.name].add(values, events.lengths)
        else:
            values, kind = table.category_of(feature)
        self._keep(feature, kind)
        if (counts := self._counts.get(table_of(feature))) is not None:
            counts.add(values)

    def _keep(self, feature: Feature, kind: Kind | None) -> None:
        if kind is not None:
            known = self.kinds.get(feature.name)
            self.kinds[feature.name] = kind if known is None else known.joined(kind)

    def tables(self) -> dict[str, Vocabulary | int]:
        """`{table: its vocabulary, or its hash buckets}`."""
        owners = {f.name: f for f in self.features}
        learnt: dict[str, Vocabulary | int] = dict(self._hashed)

        def vocabulary(name: str) -> Vocabulary:
            owner = owners[name]
            assert isinstance(owner, Id | History | Bag)  # the keys of _counts
            return self._counts[name].vocabulary(owner.min_count, owner.max_size)

        learnt |= {
            name: found() for name, found in zip(self._counts, on_all_cores(vocabulary, self._counts), strict=True)
        }
        for feature in self.features:
            if isinstance(feature, Number) and feature.buckets is not None:
                learnt[feature.name] = len(self._edges(feature)) + 1
        return learnt

    def numbers(self) -> dict[str, NumberStats]:
        """`{number feature: its statistics}`."""
        return {f.name: self._stats(f) for f in self.features if isinstance(f, Number)}

    def _stats(self, feature: Number) -> NumberStats:
        moments = self._numbers[feature.name]
        if feature.buckets is not None:
            return NumberStats(edges=self._edges(feature), low=moments.low, high=moments.high)
        mean, deviation = (moments.mean, moments.deviation) if feature.standardise else (0.0, 1.0)
        return NumberStats(mean, deviation, low=moments.low, high=moments.high)

    def _edges(self, feature: Number) -> tuple[float, ...]:
        if isinstance(feature.buckets, list):
            return tuple(sorted(transformed(np.array(feature.buckets, np.float64), feature.log1p)))
        return self._numbers[feature.name].quantiles(feature.buckets or 1)

    @property
    def lists(self) -> dict[str, ListFacts]:
        """`{list feature: what its lists look like}`."""
        return {name: facts.judged() for name, facts in self._lists.items()}

    @property
    def missing(self) -> dict[str, tuple[int, int]]:
        """`{number feature: (missing or not finite, rows)}`."""
        return {name: (m.missing, m.missing + m.count) for name, m in self._numbers.items()}


class PlainFacts(TypedDict):
    """`ListFacts` as plain values."""

    rows: int
    empty: int
    events: int
    most: str
    times: int
    seen: int


@dataclass
class ListFacts:
    """What the lists of a feature look like.

    rows, empty: rows in all, and without a value; events: values in all; most: the most frequent of the first `seen`
    values, `times` of them.
    """

    rows: int = 0
    empty: int = 0
    events: int = 0
    most: str = ""
    times: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        self._counts = ValueCounts()

    def add(self, values: pa.Array, lengths: NDArray[np.int64]) -> None:
        """See one piece."""
        self.rows += len(lengths)
        self.empty += int((lengths == 0).sum())
        self.events += len(values)
        if counted := values.slice(0, max(_EVENTS - self.seen, 0)):
            self.seen += len(counted)
            self._counts.add(counted)

    def judged(self) -> ListFacts:
        """With the most frequent value."""
        known = self._counts.vocabulary(1, 1)
        if len(known.values):
            self.most, self.times = str(known.values[0]), known.counts[0].as_py()
        return self


def _keeps_sample(feature: Number) -> bool:
    return isinstance(feature.buckets, int)


class _Moments:
    """Mean and deviation over pieces (Chan et al., 1979, eq. 2.1), the range, and a uniform sample for quantiles."""

    def __init__(self, sampled: bool) -> None:
        self.count, self.missing, self.mean, self._squares = 0, 0, 0.0, 0.0
        self.low, self.high = -math.inf, math.inf  # of no number: not known
        self._sample: NDArray[np.float64] = np.empty(0)
        self._ranks: NDArray[np.float64] = np.empty(0)
        self._random = np.random.default_rng(0) if sampled else None

    def add(self, values: NDArray[np.float64]) -> None:
        seen = values[~np.isnan(values)]
        self.missing += len(values) - len(seen)
        if not len(seen):
            return
        low, high = float(seen.min()), float(seen.max())
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.count else (low, high)
        mean, total = float(seen.mean()), self.count + len(seen)
        shift = mean - self.mean
        self._squares += float(((seen - mean) ** 2).sum()) + shift**2 * self.count * len(seen) / total
        self.mean += shift * len(seen) / total
        self.count = total
        if self._random is not None:
            self._draw(seen, self._random)

    def _draw(self, seen: NDArray[np.float64], random: np.random.Generator) -> None:
        """Every value gets a random rank; the lowest ranks are the sample."""
        ranks = np.concatenate([self._ranks, random.random(len(seen))])
        values = np.concatenate([self._sample, seen])
        if len(ranks) > _SAMPLE:
            lowest = np.argpartition(ranks, _SAMPLE)[:_SAMPLE]
            ranks, values = ranks[lowest], values[lowest]
        self._ranks, self._sample = ranks, values

    @property
    def deviation(self) -> float:
        """The standard deviation; 1 for a column that never varies, but for the rounding of its sum."""
        deviation = float(np.sqrt(self._squares / self.count)) if self.count else 0.0
        return deviation if deviation > _ROUNDING * abs(self.mean) else 1.0

    def quantiles(self, buckets: int) -> tuple[float, ...]:
        """The inner edges of `buckets` classes of equal size; fewer where values repeat."""
        if not len(self._sample):
            return ()
        edges = np.quantile(self._sample, np.arange(1, buckets) / buckets)
        return tuple(float(e) for e in np.unique(edges))
