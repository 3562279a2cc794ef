"""From Arrow columns to a `Batch`: ids with their table offsets, lists, numbers, labels, weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.data.batch import Batch, Ragged, sent
from espace.data.encoding.columns import (
    Bag,
    Feature,
    Hash,
    Id,
    Number,
    Vector,
    column_of,
    columns_of,
    is_categorical,
    is_list,
    table_of,
)
from espace.data.encoding.columns import Sequence as History
from espace.data.encoding.kinds import Kind
from espace.data.encoding.known import Counts
from espace.data.encoding.labels import Limits, Mask, Policy, resolve
from espace.data.encoding.table import LARGEST, Columns, Extra
from espace.data.encoding.vocabulary import FIRST, NULL, UNKNOWN, Vocabulary, hash_rows
from espace.data.reading.cache import digest
from espace.data.reading.lists import offsets_of, truncated
from espace.errors import DataError, EspaceError


@dataclass(frozen=True)
class NumberStats:
    """What a number feature learnt from the training rows: its moments and range, or the edges of its buckets.

    low, high: the least and the largest, infinite where not known, as in artefacts of espace 1.
    """

    mean: float = 0.0
    deviation: float = 1.0
    edges: tuple[float, ...] = ()
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Slot:
    """Where one vocabulary lies: the table of its width, and its first row in it."""

    width: int
    offset: int
    rows: int


@dataclass(frozen=True)
class Layout:
    """All vocabularies in one table per width: `slots[name of the table's feature]`, `rows[width]`."""

    slots: Mapping[str, Slot]
    rows: Mapping[int, int]


def ordered_ids(features: Sequence[Feature], dim: int) -> list[Feature]:
    """The features with one id a row, in the order of the columns of `Batch.ids`: by width, else as written."""
    single = [f for f in features if is_categorical(f) and not is_list(f)]
    return sorted(single, key=lambda f: width_of(f, features, dim))


def width_of(feature: Feature, features: Sequence[Feature], dim: int) -> int:
    """The embedding width of a categorical feature: that of the feature whose table it uses, else `dim`."""
    owner = next(f for f in features if f.name == table_of(feature))
    return getattr(owner, "dim", None) or dim


class Encoder:
    """Everything needed to turn a table into a batch; it travels inside the model artefact.

    Args:
        features: the features, checked: `share` names one of them.
        chain: the chain.
        labels: `{stage or value: column}` for `chain.labelled` and the values of the chain.
        dim: the default embedding width.
        weight: the column of row weights.
        extras: `{column: "key", "value" or "probability"}`, other columns that metrics want.
        policy: what to do with labels that contradict the chain.
        limits: `{value: the least and the largest amount that there can be}`.
        known_by: the column by whose values the share of known labels is told apart.
        tables: `{table: Vocabulary, or the number of hash buckets}`.
        numbers: `{number feature: its statistics}`.
        kinds: `{feature of categories or dates: what training saw in its column}`; other types are converted exactly
            or refused.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        chain: Chain,
        labels: Mapping[str, str],
        *,
        dim: int,
        weight: str | None = None,
        extras: Mapping[str, Extra] | None = None,
        policy: Policy = "error",
        limits: Mapping[str, Limits] | None = None,
        known_by: str | None = None,
        tables: Mapping[str, Vocabulary | int],
        numbers: Mapping[str, NumberStats],
        kinds: Mapping[str, Kind] | None = None,
    ) -> None:
        self.features = list(features)
        self.chain = chain
        self.labels = dict(labels)
        self.dim = dim
        self.weight = weight
        self.extras = dict(extras or {})
        self.policy = policy
        self.limits = dict(limits or {})
        self.known_by = known_by
        self.counts: Counts | None = None
        self.tables = dict(tables)
        self.numbers = dict(numbers)
        self.kinds = dict(kinds or {})

    def without_extras(self) -> Encoder:
        """The same one, for rows that no metric sees."""
        other = copy.copy(self)
        other.extras = {}
        other.__dict__.pop("identity", None)  # it was that of this one
        return other

    @cached_property
    def layout(self) -> Layout:
        """Rows and offsets of every table."""
        slots: dict[str, Slot] = {}
        rows: dict[int, int] = {}
        for feature in self.features:
            name = table_of(feature)
            if not is_categorical(feature) or name in slots:
                continue
            width, table = width_of(feature, self.features, self.dim), self.tables[name]
            size = table.rows if isinstance(table, Vocabulary) else FIRST + table
            slots[name] = Slot(width, rows.get(width, 0), size)
            rows[width] = rows.get(width, 0) + size
        too_big = {w: n for w, n in rows.items() if n > np.iinfo(np.int32).max}
        if too_big:
            raise EspaceError(
                f"embedding: the table of width {min(too_big)} has more than 2**31 rows. Raise min_count."
            )
        return Layout(slots, rows)

    @cached_property
    def ids(self) -> list[Feature]:
        """The features in the order of the columns of `Batch.ids`."""
        return ordered_ids(self.features, self.dim)

    def columns(self, labels: bool = True) -> list[str]:
        """The columns to read, each once; without labels, weights and extras when only predictions are wanted."""
        wanted = [column for f in self.features for column in columns_of(f)]
        if labels:
            wanted += [*self.labels.values(), *(c for c in (self.weight, self.known_by) if c), *self.extras]
        return list(dict.fromkeys(wanted))

    def encode(self, table: pa.Table, where: str, labels: bool = True, first: int = 0) -> Batch:
        """The rows of `table`, which is `where` from its row `first`.

        Raises DataError naming the place, the column and the value that cannot be encoded.
        """
        rows = table.num_rows
        get = Columns(table, where, np.arange(first, first + rows))
        ids = [self._id(f, get) for f in self.ids]
        lists = {f.name: self._list(f, get) for f in self.features if isinstance(f, History | Bag)}
        numbers = [self._numbers(f, get, rows) for f in self.features]
        numbers = [block for block in numbers if block.shape[1]]
        values, amounts, counts, broken = self._labels(get, rows, labels)
        batch = Batch(
            torch.from_numpy(np.ascontiguousarray(np.stack(ids).T) if ids else np.empty((rows, 0), np.int32)),
            lists,
            torch.from_numpy(np.concatenate(numbers, axis=1) if numbers else np.empty((rows, 0), np.float32)),
            torch.from_numpy(values),
            torch.from_numpy(self._weights(get, rows, labels)),
            {c: torch.from_numpy(get.extra(c, kind)) for c, kind in self.extras.items()} if labels else {},
            torch.from_numpy(amounts),
            torch.from_numpy(counts),
        )
        return batch.take(torch.from_numpy(np.flatnonzero(~broken))) if broken.any() else batch

    def _id(self, feature: Feature, get: Columns) -> NDArray[np.int32]:
        if isinstance(feature, Id | Hash):
            return self._rows_of(feature, get.category_of(feature, self.kinds.get(feature.name))[0])
        assert isinstance(feature, Number), "ids are ids, hashes or numbers with buckets"
        numbers = self._transformed(feature, get)
        return _bucket(numbers, self.numbers[feature.name].edges) + np.int32(self.layout.slots[feature.name].offset)

    def _rows_of(self, feature: Feature, values: pa.Array) -> NDArray[np.int32]:
        """Rows of the fused table for canonical values."""
        name = table_of(feature)
        table = self.tables[name]
        rows = table.encode(values) if isinstance(table, Vocabulary) else hash_rows(values, name, table)
        return rows + np.int32(self.layout.slots[name].offset)

    def _list(self, feature: History | Bag, get: Columns) -> Ragged:
        events = get.events_of(feature, self.kinds.get(feature.name))
        rows, lengths, weights = self._rows_of(feature, events.values), events.lengths, events.weights
        if isinstance(feature, History) and len(lengths) and lengths.max() > feature.max_length:
            stay, lengths = truncated(lengths, feature.max_length, feature.keep)
            rows = rows[stay]
        return Ragged(
            torch.from_numpy(rows),
            torch.from_numpy(offsets_of(lengths)),
            None if weights is None else torch.from_numpy(weights),
        )

    def _numbers(self, feature: Feature, get: Columns, rows: int) -> NDArray[np.float32]:
        if isinstance(feature, Vector):
            return get.vector(column_of(feature), feature.size)
        if not isinstance(feature, Number) or feature.buckets is not None:
            return np.empty((rows, 0), np.float32)
        stats = self.numbers[feature.name]
        values = self._transformed(feature, get)
        missing = np.isnan(values)
        scaled = np.where(missing, 0.0, (values - stats.mean) / stats.deviation)
        return np.stack([scaled.clip(-LARGEST, LARGEST), missing], axis=1).astype(np.float32)

    def counting(self, counts: Counts | None) -> Encoder:
        """The same, of a part of whose rows each stands for so many."""
        found = copy.copy(self)
        found.counts = counts
        found.__dict__.pop("identity", None)
        return found

    def _transformed(self, feature: Number, get: Columns) -> NDArray[np.float64]:
        return transformed(get.number_of(feature, self.kinds.get(feature.name))[0], feature.log1p)

    def _labels(
        self, get: Columns, rows: int, wanted: bool
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32], Mask]:
        """Label values, amounts, what rows stand for, and the rows to drop because they contradict the chain."""
        names, nothing = [v.amount for v in self.chain.values], np.empty((rows, 0), np.float32)
        if not wanted:
            unknown = np.full((rows, len(names)), np.nan, np.float32)
            none = np.full((rows, len(self.chain.stages) - 1), -1, np.int8)
            return none, unknown, nothing, np.zeros(rows, np.bool_)
        raw = {stage: get.label(column) for stage, column in self.labels.items() if stage not in names}
        amounts = {name: get.amount(self.labels[name]) for name in names}
        resolved = resolve(self.chain, raw, self.policy, amounts, self.limits)
        if resolved.broken.any() and self.policy != "drop":
            row = int(resolved.broken.argmax())
            raise DataError(
                f"{get.where}: {int(resolved.broken.sum()):,} of {rows:,} rows have labels that contradict the chain,"
                f" row {row} for one. Fix the labels, or set data.violations: drop."
            )
        by = get.stratum(self.known_by) if self.known_by else None
        counts = nothing if self.counts is None else self.counts.of(self.chain, resolved, by)
        return resolved.values, resolved.amounts, counts, resolved.broken

    def _weights(self, get: Columns, rows: int, wanted: bool) -> NDArray[np.float32]:
        return get.weights(self.weight) if wanted and self.weight else np.ones(rows, np.float32)

    @cached_property
    def _forgetting(self) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """For each column of ids the share to replace by "unknown", and the row of its table's padding."""
        rates = [f.unknown_rate if isinstance(f, Id) else 0.0 for f in self.ids]
        return np.array(rates), np.array([self.layout.slots[table_of(f)].offset for f in self.ids], np.int32)

    def forget(self, batch: Batch, random: np.random.Generator) -> None:
        """Replace a share of the known ids by "unknown", in place, so that the unknown rows are trained.

        The batch may be on any device: the random numbers are drawn here, and nothing waits for the device.
        """
        rates, padding = self._forgetting
        if not rates.any() or not len(batch):
            return
        forgetful = np.flatnonzero(rates)
        rows, found = (random.random((len(batch), len(forgetful))) < rates[forgetful]).nonzero()
        columns = forgetful[found]
        drawn = torch.from_numpy(np.stack([rows, columns, padding[columns]]))
        row, column, paddings = sent(drawn, batch.ids.device)
        old = batch.ids[row, column]
        batch.ids[row, column] = torch.where(old < paddings + FIRST, old, paddings + UNKNOWN).int()

    @cached_property
    def inputs(self) -> str:
        """Changes when what a model reads of the same table does."""
        learnt = [(n, t if isinstance(t, int) else t.identity) for n, t in sorted(self.tables.items())]
        numbers = [(n, s.mean, s.deviation, s.edges) for n, s in sorted(self.numbers.items())]
        kinds = [(name, kind.state()) for name, kind in sorted(self.kinds.items())]
        return digest(self.features, self.dim, learnt, numbers, kinds)

    @cached_property
    def identity(self) -> str:
        """Changes when what it makes of the same table does."""
        facts = [self.inputs, self.chain.lines(), sorted(self.labels.items()), self.weight, self.policy, self.known_by]
        ranges = [(n, s.low, s.high) for n, s in sorted(self.numbers.items())]
        more = (sorted(self.extras.items()), sorted(self.limits.items()), ranges)
        return digest(*facts, self.counts and self.counts.facts, *more)

    def state(self) -> dict[str, object]:
        """What was learnt from data, as plain numpy arrays, numbers and text, for a checkpoint."""
        tables = {n: t.state() if isinstance(t, Vocabulary) else t for n, t in self.tables.items()}
        numbers = {n: [s.mean, s.deviation, list(s.edges), s.low, s.high] for n, s in self.numbers.items()}
        return {"tables": tables, "numbers": numbers, "kinds": {n: k.state() for n, k in self.kinds.items()}}


def learnt_from_state(state: Mapping[str, Any]) -> tuple[dict[str, Vocabulary | int], dict[str, NumberStats]]:
    """The `tables` and `numbers` of `Encoder.state()`, as a checkpoint holds them; older ones know no ranges."""
    tables = {n: t if isinstance(t, int) else Vocabulary.from_state(t) for n, t in state["tables"].items()}
    numbers = {
        n: NumberStats(mean, dev, tuple(edges), *range_) for n, (mean, dev, edges, *range_) in state["numbers"].items()
    }
    return tables, numbers


def kinds_from_state(state: Mapping[str, Any]) -> dict[str, Kind]:
    """The `kinds` of `Encoder.state()`."""
    return {name: Kind.from_state(kind) for name, kind in state["kinds"].items()}


def transformed(values: NDArray[np.float64], log1p: bool) -> NDArray[np.float64]:
    """sign(x) log(1 + |x|), or the values themselves."""
    return np.sign(values) * np.log1p(np.abs(values)) if log1p else values


def _bucket(numbers: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int32]:
    rows = np.searchsorted(np.asarray(edges), numbers, side="right").astype(np.int32) + np.int32(FIRST)
    rows[np.isnan(numbers)] = NULL
    return rows
