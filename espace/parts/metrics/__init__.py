"""Metrics: how good one probability is in one space. Here stands what they share; each file beside it is one metric."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

import espace
from espace.errors import DataError, NonFiniteError, did_you_mean

_HASHES = 2**62


def judged(scored: espace.Scored) -> espace.Scored:
    """The rows of non-zero weight, predictions, labels and weights widened to float64; made once for all metrics.

    Raises NonFiniteError when a prediction on one of these rows is NaN or infinite.
    """
    found = scored.made.get("judged")
    if not isinstance(found, espace.Scored):
        found = scored.made["judged"] = _judged(scored)
    return found


def _judged(scored: espace.Scored) -> espace.Scored:
    rows = scored.weights.nonzero().squeeze(1)
    wide = espace.Scored(
        scored.log_prob.index_select(0, rows).double(),
        scored.log_not_prob.index_select(0, rows).double(),
        scored.labels.index_select(0, rows).double(),
        scored.weights.index_select(0, rows).double(),
        {name: column.index_select(0, rows) for name, column in scored.extras.items()},
    )
    finite = logit(wide).isfinite()
    if not finite.all():
        raise NonFiniteError(
            f"metrics: {int((~finite).sum()):,} of {len(finite):,} predictions are NaN or infinite, so no metric"
            " of them means anything. Lower the learning rate, or look for NaN and huge values among the number"
            " features."
        )
    return wide


def logit(scored: espace.Scored) -> Tensor:
    """log P - log(1 - P), exact in both tails: (rows,)."""
    return scored.log_prob - scored.log_not_prob


def extra(scored: espace.Scored, column: str, option: str) -> Tensor:
    """Another column of the rows, (rows,), which the option names. Raises DataError where there is none."""
    if column not in scored.extras:
        raise DataError(f"{option}: the rows have no extra column '{column}'.{did_you_mean(column, scored.extras)}")
    return scored.extras[column]


class KeepingMetric(torchmetrics.Metric):
    """A metric that needs the rows themselves. Abstract.

    Keeps all of them up to `max_rows`; beyond that, those whose hashed key lies below a threshold that is halved
    whenever the store is full. Rows of one key stay or go together, whatever their order, and on whatever rank they
    are.

    Args:
        max_rows: how many rows each rank keeps at most.
        columns: how many numbers a row has; 8 bytes each, and 8 for the key.
    """

    keys: list[Tensor]  # (rows,) int64
    rows: list[Tensor]  # (rows, columns) float64
    stored: Tensor
    threshold: Tensor  # rows whose hashed key is not below it are left out

    def __init__(self, max_rows: int, columns: int) -> None:
        super().__init__()
        self.max_rows = max_rows
        self.columns = columns
        self.add_state("keys", [], dist_reduce_fx="cat")
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("stored", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("threshold", torch.tensor(_HASHES), dist_reduce_fx="min")

    def keep(self, keys: Tensor, *columns: Tensor) -> None:
        """Add rows: keys (rows,) int64, and columns (rows,) float64."""
        below = hashed(keys) < self.threshold
        self.keys.append(keys[below])
        self.rows.append(torch.stack(columns, dim=1)[below])
        self.stored += below.sum()
        if self.stored > self.max_rows:
            keys, rows, self.threshold = self._fitting()
            self.keys, self.rows = [keys], [rows]
            self.stored = torch.full_like(self.stored, len(keys))

    def kept(self) -> tuple[Tensor, ...]:
        """The key and the columns of the rows that fit, (rows,) each."""
        keys, rows, _ = self._fitting()
        return keys, *rows.unbind(1)

    def sync(
        self,
        dist_sync_fn: Callable[..., object] | None = None,
        process_group: object = None,
        should_sync: bool = True,
        distributed_available: Callable[..., object] | None = None,
    ) -> None:
        """Gather the states of all ranks. A rank without rows takes part with empty columns of the right type."""
        self.keys.append(self.threshold.new_zeros(0))
        self.rows.append(self.threshold.new_zeros(0, self.columns).double())
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def _fitting(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and rows of which there are no more than `max_rows`, and the threshold that leaves those."""
        keys, rows = dim_zero_cat(self.keys), dim_zero_cat(self.rows)
        hashes, threshold = hashed(keys), self.threshold
        while (hashes < threshold).sum() > self.max_rows:
            threshold = threshold // 2
        fit = hashes < threshold
        return keys[fit], rows[fit], threshold


class RankingMetric(torchmetrics.Metric):
    """A metric of the order of the rows, which counts two things along it. Abstract.

    Keeps all rows up to `max_rows`. Beyond that what it has is put in order, and neighbours are merged into about
    `bins` bins, each with about the same share of what is counted; rows with one key stay together, and a key with a
    larger share stays alone. So bins follow the data, wherever that lies and however narrow it is. Merged rows are
    merged again only with others that stand for as many, so that of R rows none is merged more than
    1 + log2(R / max_rows) times; each time, no more than 2 / bins of what is counted passes it.

    Args:
        max_rows: how many rows each rank keeps at most; 24 bytes each.
        bins: how many bins the rows beyond are merged into; 24 bytes each, once for every doubling of the rows.
        orders: a name for each key that rows are ordered by.
    """

    def __init__(self, max_rows: int, bins: int, *orders: str) -> None:
        super().__init__()
        self.max_rows = max_rows
        self.bins = bins
        self.orders = orders
        for order in orders:  # lists of (n, 3) float64: key, and what is counted; and of (1,), the rows of each merged
            for state in (order, f"{order}_merged", f"{order}_rows"):
                self.add_state(state, [], dist_reduce_fx="cat")

    def keep(self, order: str, *columns: Tensor) -> None:
        """Add rows: their key and the two things that are counted, (rows,) float64 each."""
        kept: list[Tensor] = getattr(self, order)
        kept.append(torch.stack(columns, dim=1))
        if sum(len(piece) for piece in kept) > self.max_rows:
            self._merge(order, torch.cat(kept))
            kept.clear()

    def ordered(self, order: str) -> tuple[Tensor, ...]:
        """Rising keys, each once, and what is counted at each: (keys,) three times."""
        return _ordered(torch.cat([self._none(), *self._pieces(order), *self._pieces(f"{order}_merged")])).unbind(1)

    def masses(self, rows: Tensor) -> Tensor:
        """What bins have equal shares of: (n, 2), not negative, of (n, 3) rows."""
        return rows[:, 1:]

    def sync(
        self,
        dist_sync_fn: Callable[..., object] | None = None,
        process_group: object = None,
        should_sync: bool = True,
        distributed_available: Callable[..., object] | None = None,
    ) -> None:
        """Gather the states of all ranks. A rank without rows takes part with empty columns of the right type."""
        for order in self.orders:
            for state in (order, f"{order}_merged"):
                getattr(self, state).append(self._none())
            getattr(self, f"{order}_rows").append(self._none()[:, 0].long())
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def _merge(self, order: str, rows: Tensor) -> None:
        """Put rows among the merged ones, together with those that stand for no more."""
        merged, counts = self._pieces(f"{order}_merged"), self._pieces(f"{order}_rows")
        stack = [(piece, int(count)) for piece, count in zip(merged, counts, strict=True) if len(piece)]
        new, count = self._binned(rows), len(rows)
        while stack and stack[-1][1] <= count:
            piece, more = stack.pop()
            new, count = self._binned(torch.cat([piece, new])), count + more
        stack.append((new, count))
        setattr(self, f"{order}_merged", [piece for piece, _ in stack])
        setattr(self, f"{order}_rows", [torch.tensor([count], device=self.device) for _, count in stack])

    def _binned(self, rows: Tensor) -> Tensor:
        """The same, (n, 3), in order, in about as many bins as there may be."""
        rows = _ordered(rows)
        if len(rows) <= self.bins:
            return rows
        masses = self.masses(rows)
        share = (masses / masses.sum(0).clamp(min=torch.finfo(masses.dtype).tiny)).mean(1) * self.bins
        bin_of = (share.cumsum(0) - share / 2).long()
        alone = share >= 1
        begins = torch.ones_like(alone)
        begins[1:] = (bin_of.diff() > 0) | alone[1:] | alone[:-1]
        return _summed(rows, begins)

    def _pieces(self, state: str) -> list[Tensor]:
        found: list[Tensor] | Tensor = getattr(self, state)
        return [found] if isinstance(found, Tensor) else found  # one tensor while the ranks' are together

    def _none(self) -> Tensor:
        return torch.zeros(0, 3, dtype=torch.float64, device=self.device)


def _ordered(rows: Tensor) -> Tensor:
    """Rows, (n, 3), in the order of their keys, those of one key added up."""
    columns = rows.T.contiguous()  # sorting and gathering are twice as fast
    key, order = columns[0].sort()
    begins = torch.ones_like(key, dtype=torch.bool)
    begins[1:] = key[1:] != key[:-1]
    return _summed(torch.stack([key, columns[1][order], columns[2][order]], dim=1), begins)


def _summed(rows: Tensor, begins: Tensor) -> Tensor:
    """Rows, (n, 3), added up from each that begins a bin, (n,) bool, to the next; the key is that of the middle one."""
    first = begins.nonzero().squeeze(1)
    if len(first) == len(rows):
        return rows
    last = torch.cat([first[1:], first.new_tensor([len(rows)])]) - 1
    sums = rows.new_zeros(len(first), 2).index_add_(0, begins.cumsum(0) - 1, rows[:, 1:])
    return torch.cat([rows[(first + last) // 2, :1], sums], dim=1)


def hashed(keys: Tensor) -> Tensor:
    """splitmix64 (Steele et al., OOPSLA 2014) of int64 keys, as int64 from 0 to 2**62 - 1."""
    z = keys + (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return _shift(z ^ _shift(z, 31), 2)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right as if unsigned."""
    low: int = 2 ** (64 - bits) - 1
    return (z >> bits) & low
