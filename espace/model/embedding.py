"""One table per width for all id features of that width: a look-up per width, sparse gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espace.data.batch import Batch, Ragged
from espace.data.encoding.columns import Bag, Feature, Number, Vector
from espace.data.encoding.columns import Sequence as History
from espace.data.encoding.encode import Layout, ordered_ids, width_of
from espace.model.features import Features, FeatureSpec, Field


def feature_spec(features: Sequence[Feature], dim: int) -> FeatureSpec:
    """The layout of the flat vector: ids by width, pooled bags and sequences, then numbers and vectors."""
    fields = [Field(f.name, "id", width_of(f, features, dim)) for f in ordered_ids(features, dim)]
    sequences = {}
    for feature in features:
        if isinstance(feature, Bag):
            fields.append(Field(feature.name, "bag", width_of(feature, features, dim)))
        elif isinstance(feature, History):
            width = width_of(feature, features, dim)
            fields.append(Field(feature.name, "sequence", 0 if feature.pool == "none" else width))
            sequences[feature.name] = width
    for feature in features:
        if isinstance(feature, Number) and feature.buckets is None:
            fields.append(Field(feature.name, "number", 2))
        elif isinstance(feature, Vector):
            fields.append(Field(feature.name, "vector", feature.size))
    targets = {f.name: f.share for f in features if isinstance(f, History) and f.share is not None}
    return FeatureSpec(tuple(fields), sequences, targets)


class Table(nn.Embedding):
    """All vocabularies of one width. A module of its own, since DDP asks modules which gradients are sparse.

    Args:
        rows: the numbers, (rows, width).
        sparse: whether gradients name the rows looked up, or are as large as the table.
    """

    before_look_up: Callable[[Tensor, Tensor], None] | None = None  # called with the table and its rows, any shape

    def __init__(self, rows: Tensor, sparse: bool) -> None:
        super().__init__(len(rows), rows.shape[1], sparse=sparse, _weight=rows)

    def forward(self, rows: Tensor) -> Tensor:
        """The vectors of `rows`, of any shape: (..., width)."""
        return F.embedding(rows, self._read(rows), sparse=self.sparse)

    def pooled(self, rows: Tensor, offsets: Tensor, mode: str, weights: Tensor | None) -> Tensor:
        """The sum or mean of the vectors of each bag of `rows`, (n,), which start at `offsets`: (bags, width)."""
        offsets = offsets.to(rows.dtype)
        table = self._read(rows)
        return F.embedding_bag(rows, table, offsets, mode=mode, sparse=self.sparse, per_sample_weights=weights)

    def _read(self, rows: Tensor) -> Tensor:
        if self.before_look_up is not None and self.training:
            self.before_look_up(self.weight, rows)
        return self.weight


class Embedding(nn.Module):
    """Batch in, features out.

    Args:
        features: the features, in the order of the YAML.
        layout: where each vocabulary lies.
        dim: the default width.
        std: standard deviation of the normal start; row 0 of every vocabulary, padding, starts at zero. None: tables
            hold nothing yet, and take no memory before they are loaded.
        sparse: whether the gradients of tables name the rows looked up.
    """

    def __init__(
        self, features: Sequence[Feature], layout: Layout, *, dim: int, std: float | None, sparse: bool = True
    ) -> None:
        super().__init__()
        self.spec = feature_spec(features, dim)
        self._std = std
        self.lists = {f.name: f for f in features if isinstance(f, History | Bag)}
        self._list_width = {name: width_of(f, features, dim) for name, f in self.lists.items()}
        widths = [width_of(f, features, dim) for f in ordered_ids(features, dim)]
        self._id_columns = {w: (widths.index(w), widths.index(w) + widths.count(w)) for w in sorted(set(widths))}
        self.tables = nn.ModuleDict({str(w): Table(_drawn(r, w, layout, std), sparse) for w, r in layout.rows.items()})

    @torch.no_grad()
    def widen(self) -> None:
        """Give every row the numbers that towers have asked of `spec`, drawn like the rest of it.

        They stand in the same row of the same table, so that they cost no look-up and no update of their own.
        """
        if not self.spec.extra_width:
            return
        for width in map(int, self.tables):
            old = self._table(width)
            table = old.weight
            if self._std is None:
                wider = table.new_empty(len(table), table.shape[1] + self.spec.extra_width)
            else:
                more = table.new_empty(len(table), self.spec.extra_width).normal_(0.0, self._std)
                more.masked_fill_((table == 0).all(dim=1, keepdim=True), 0.0)  # padding
                wider = torch.cat([table, more], dim=1)
            self.tables[str(width)] = Table(wider, old.sparse)

    def forward(self, batch: Batch) -> Features:
        """Look everything up. Features.flat() is (rows, spec.width)."""
        found = [(self._table(w)(batch.ids[:, start:stop]), w) for w, (start, stop) in self._id_columns.items()]
        pooled = [name for name, f in self.lists.items() if f.pool != "none"]
        found += [(self._pooled(name, batch.lists[name])[:, None], self._list_width[name]) for name in pooled]
        extra = None
        if self.spec.extra_width and found:
            extra = torch.cat([both[:, :, width:] for both, width in found], dim=1)
            found = [(both[:, :, :width], width) for both, width in found]
        parts = [vectors.flatten(1) for vectors, _ in found]
        if batch.numbers.shape[1]:
            parts.append(batch.numbers)
        histories = {name: partial(self._history, name, batch.lists[name]) for name in self.spec.sequences}
        return Features(self.spec, parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), histories, extra)

    def _pooled(self, name: str, ragged: Ragged) -> Tensor:
        """The sum or mean of each row's vectors, zeros where a row has none: (rows, width and extra)."""
        mean = self.lists[name].pool == "mean"
        weights = ragged.weights
        if weights is not None and mean:
            totals = torch.segment_reduce(weights, "sum", offsets=ragged.offsets)
            weights = weights / totals.where(totals > 0, torch.ones_like(totals)).repeat_interleave(ragged.lengths)
        mode = "mean" if mean and weights is None else "sum"
        return self._table(self._list_width[name]).pooled(ragged.values, ragged.offsets[:-1], mode, weights)

    def _history(self, name: str, ragged: Ragged) -> Ragged:
        width = self._list_width[name]
        return Ragged(self._table(width)(ragged.values)[:, :width], ragged.offsets)

    def _table(self, width: int) -> Table:
        table = self.tables[str(width)]
        assert isinstance(table, Table), "as built"
        return table


def _drawn(rows: int, width: int, layout: Layout, std: float | None) -> Tensor:
    table = torch.empty(rows, width)
    if std is None:
        return table
    table.normal_(0.0, std)
    for slot in layout.slots.values():
        if slot.width == width:
            table[slot.offset] = 0.0
    return table
