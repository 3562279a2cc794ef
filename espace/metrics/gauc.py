"""AUC inside each group, averaged over groups by their impressions (Zhou et al., KDD 2018, "DIN", its metric GAUC).

    GAUC = sum over groups of (#impressions * AUC) / sum over groups of #impressions

Only groups with both classes have an AUC; the others are left out of both sums. Exact while all rows fit in memory; beyond
that, whole groups are kept whose hashed key lies below a threshold that is halved whenever the store is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torchmetrics
from annotated_types import Ge
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

import espace
from espace.errors import DataError, did_you_mean
from espace.metrics import judged, logit

_HASHES = 2**62


class GAUC(torchmetrics.Metric):
    """Weighted AUC per group, averaged by the groups' weights.

    Args:
        by: the extra column with the group keys (integers), such as the user.
        max_rows: how many rows each rank keeps at most; 24 bytes each.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    keys: list[Tensor]  # (rows,) int64
    logits: list[Tensor]  # (rows,) float64
    signed: list[Tensor]  # (rows,) float64, the weight of a positive, minus the weight of a negative
    stored: Tensor
    threshold: Tensor  # groups whose hashed key is not below it are left out

    def __init__(self, *, by: str, max_rows: Annotated[int, Ge(1)] = 2_000_000) -> None:
        super().__init__()
        self.by = by
        self.max_rows = max_rows
        for name in ("keys", "logits", "signed"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("stored", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("threshold", torch.tensor(_HASHES), dist_reduce_fx="min")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError, and DataError when the rows have no such column of integers."""
        rows = judged(scored)
        keys = _group_keys(rows.extras, self.by)
        kept = _hash(keys) < self.threshold
        self._append(keys[kept], logit(rows)[kept], (rows.weights * (2 * rows.labels - 1))[kept])
        self.stored += kept.sum()
        if self.stored > self.max_rows:
            self._thin()

    def compute(self) -> dict[str, Tensor]:
        """`{"gauc", "gauc_groups"}`: NaN when no group has both classes; the second counts the groups that have."""
        (keys, logits, signed), _ = self._whole_groups()
        return _grouped_auc(keys, logits, signed)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks. A rank without rows takes part with empty columns of the right type."""
        nothing = self.threshold.new_zeros(0)
        self._append(nothing, nothing.double(), nothing.double())
        super().sync(*args, **kwargs)

    def _append(self, keys: Tensor, logits: Tensor, signed: Tensor) -> None:
        self.keys.append(keys)
        self.logits.append(logits)
        self.signed.append(signed)

    def _thin(self) -> None:
        (keys, logits, signed), self.threshold = self._whole_groups()
        self.keys, self.logits, self.signed = [keys], [logits], [signed]
        self.stored = torch.full_like(self.stored, len(keys))

    def _whole_groups(self) -> tuple[list[Tensor], Tensor]:
        """The columns, rows of the groups that fit in `max_rows` only, and the threshold that leaves those."""
        columns = [dim_zero_cat(column) for column in (self.keys, self.logits, self.signed)]
        hashes = _hash(columns[0])
        threshold = self.threshold
        while (hashes < threshold).sum() > self.max_rows:
            threshold = threshold // 2
        kept = hashes < threshold
        return [column[kept] for column in columns], threshold


def _group_keys(extras: Mapping[str, Tensor], by: str) -> Tensor:
    if by not in extras:
        raise DataError(f"gauc.by: the rows have no extra column '{by}'.{did_you_mean(by, extras)}")
    if extras[by].is_floating_point():
        raise DataError(f"gauc.by: '{by}' is a column of {extras[by].dtype}, and groups need a column of integers.")
    return extras[by].long()


def _grouped_auc(keys: Tensor, logits: Tensor, signed: Tensor) -> dict[str, Tensor]:
    """The average of the module's docstring over (rows,) columns in any order."""
    order = logits.argsort()
    order = order[keys[order].argsort(stable=True)]
    keys, logits, signed = keys[order], logits[order], signed[order]
    tie, group = _runs(keys, logits), _runs(keys)
    group_of_tie = torch.zeros_like(tie).scatter_(0, tie, group)  # (rows,), the first ones used
    positives, negatives = _sums(signed.clamp(min=0), tie), _sums(-signed.clamp(max=0), tie)
    all_positives, all_negatives = _sums(positives, group_of_tie), _sums(negatives, group_of_tie)
    below = negatives.cumsum(0) - negatives - (all_negatives.cumsum(0) - all_negatives)[group_of_tie]
    auc = _sums(positives * (below + negatives / 2), group_of_tie) / (all_positives * all_negatives)
    both = (all_positives > 0) & (all_negatives > 0)
    impressions = (all_positives + all_negatives)[both]
    return {"gauc": (impressions @ auc[both]) / impressions.sum(), "gauc_groups": both.sum().double()}


def _runs(*columns: Tensor) -> Tensor:
    """Number the runs of equal rows in sorted columns: (rows,) int64, 0, 0, 1, 2, 2 ..."""
    starts = torch.ones_like(columns[0], dtype=torch.int64)
    starts[1:] = torch.stack([column[1:] != column[:-1] for column in columns]).any(0)
    return starts.cumsum(0) - 1


def _sums(values: Tensor, index: Tensor) -> Tensor:
    """Sum the values, (rows,), that share an index: (rows,), the first ones used."""
    return torch.zeros_like(values).index_add_(0, index, values)


def _hash(keys: Tensor) -> Tensor:
    """splitmix64 (Steele et al., OOPSLA 2014) of int64 keys, as int64 from 0 to 2**62 - 1."""
    z = keys + (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return _shift(z ^ _shift(z, 31), 2)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right as if unsigned."""
    low: int = 2 ** (64 - bits) - 1
    return (z >> bits) & low


@espace.hookimpl
def register_metrics(register: espace.Register) -> None:
    """Bring `gauc`."""
    register("gauc", GAUC)
