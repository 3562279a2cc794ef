"""A batch of encoded rows. One class serves a batch, a row group and a window of these: they differ in rows only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_NONE = torch.empty(0, 0)


@dataclass(eq=False)
class Ragged:
    """Lists of different lengths, end to end.

    values: (events,) or (events, width); offsets: (rows + 1,) int64, row i is values[offsets[i]:offsets[i + 1]];
    weights: (events,) float32 or None.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Events of each row: (rows,) int64."""
        return self.offsets.diff()

    def take(self, rows: Tensor) -> Ragged:
        """The lists of `rows`, (n,) int64, in that order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        shift = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], lengths)
        events = torch.arange(int(offsets[-1]), device=shift.device) + shift
        return Ragged(self.values[events], offsets, None if self.weights is None else self.weights[events])

    def padded(self) -> tuple[Tensor, Tensor]:
        """(rows, longest, ...) with zeros in the padding, and the mask (rows, longest), true where an event is."""
        lengths = self.lengths
        longest = int(lengths.max()) if len(lengths) else 0
        mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
        out = self.values.new_zeros(*mask.shape, *self.values.shape[1:])
        return out.masked_scatter(mask.view(*mask.shape, *[1] * (self.values.dim() - 1)), self.values), mask

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Ragged:
        """The same lists with every tensor changed."""
        weights = None if self.weights is None else change(self.weights)
        return Ragged(change(self.values), change(self.offsets), weights)

    @classmethod
    def cat(cls, parts: Sequence[Ragged]) -> Ragged:
        """The lists of several parts, one after the other."""
        weights = None if parts[0].weights is None else torch.cat([p.weights for p in parts if p.weights is not None])
        return cls(torch.cat([p.values for p in parts]), _offsets(torch.cat([p.lengths for p in parts])), weights)


@dataclass(eq=False)
class Batch:
    """Encoded rows.

    ids: (rows, id features) int32, each feature's offset into the table of its width already added.
    lists: sequences and bags, `{name: Ragged of int32}`, offset likewise.
    numbers: (rows, number columns) float32.
    labels: (rows, stages but the root) int8, -1 where not known yet.
    weights: (rows,) float32; 0 keeps a row out of every loss and metric.
    extras: other columns by name, (rows,), for metrics: groups, potential outcomes.
    amounts: (rows, values of the chain) float32, NaN where the parent did not happen or it is not known; none if not
    given.
    counts: (rows, names in `espace.chain.labels.counted`) float32, for how many rows each row stands, see `Labels`;
    none
    where every row counts once in what it has a label for.
    """

    ids: Tensor
    lists: Mapping[str, Ragged]
    numbers: Tensor
    labels: Tensor
    weights: Tensor
    extras: Mapping[str, Tensor]
    amounts: Tensor = _NONE
    counts: Tensor = _NONE

    def __post_init__(self) -> None:
        if self.amounts is _NONE:
            self.amounts = self.weights.new_empty(len(self.weights), 0)
        if self.counts is _NONE:
            self.counts = self.weights.new_empty(len(self.weights), 0)

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: Tensor) -> Batch:
        """The rows with these positions, (n,) int64, in that order."""
        return Batch(
            _take(self.ids, rows),
            {name: ragged.take(rows) for name, ragged in self.lists.items()},
            _take(self.numbers, rows),
            _take(self.labels, rows),
            _take(self.weights, rows),
            {name: _take(column, rows) for name, column in self.extras.items()},
            _take(self.amounts, rows),
            _take(self.counts, rows),
        )

    def weighted(self, weights: Tensor) -> Batch:
        """The same rows with other weights, (rows,) float32."""
        return replace(self, weights=weights)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same rows with every tensor changed."""
        return Batch(
            change(self.ids),
            {name: ragged.mapped(change) for name, ragged in self.lists.items()},
            change(self.numbers),
            change(self.labels),
            change(self.weights),
            {name: change(column) for name, column in self.extras.items()},
            change(self.amounts),
            change(self.counts),
        )

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of `mapped`."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.mapped(note)
        return found

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same rows on another device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    @classmethod
    def cat(cls, parts: Sequence[Batch], pinned: bool = False) -> Batch:
        """The rows of several parts, in their order; `pinned`: columns with a number a row lie in pinned memory."""
        first = parts[0]
        if len(parts) == 1:
            return first
        return cls(
            _cat([p.ids for p in parts], pinned),
            {name: Ragged.cat([p.lists[name] for p in parts]) for name in first.lists},
            _cat([p.numbers for p in parts], pinned),
            _cat([p.labels for p in parts], pinned),
            _cat([p.weights for p in parts], pinned),
            {name: _cat([p.extras[name] for p in parts], pinned) for name in first.extras},
            _cat([p.amounts for p in parts], pinned),
            _cat([p.counts for p in parts], pinned),
        )


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. The host does not wait for a copy to CUDA, which is made on the current stream."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps pinned memory until the copy from it is made


def _take(column: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor; one without columns costs no call of a kernel."""
    return column.index_select(0, rows) if column.numel() else column.new_empty(len(rows), *column.shape[1:])


def _cat(parts: Sequence[Tensor], pinned: bool) -> Tensor:
    if not pinned:
        return torch.cat(list(parts))
    rows, first = sum(map(len, parts)), parts[0]
    return torch.cat(list(parts), out=torch.empty(rows, *first.shape[1:], dtype=first.dtype, pin_memory=True))


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
