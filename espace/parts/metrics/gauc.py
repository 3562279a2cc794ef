"""AUC inside each group, averaged over groups by their impressions (Zhou et al., KDD 2018, "DIN", its metric GAUC).

    GAUC = sum over groups of (#impressions * AUC) / sum over groups of #impressions

Only groups with both classes have an AUC; the others are left out of both sums. Exact while all rows fit in memory;
beyond that, whole groups are kept whose hashed key lies below a threshold that is halved whenever the store is full.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

import espace
from espace.errors import DataError
from espace.parts.metrics import KeepingMetric, extra, judged, logit


class GAUC(KeepingMetric):
    """Weighted AUC per group, averaged by the groups' weights.

    Args:
        by: the extra column with the group keys (integers), such as the user.
        max_rows: how many rows each rank keeps at most; 24 bytes each.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, *, by: str, max_rows: Annotated[int, Ge(1)] = 2_000_000) -> None:
        super().__init__(max_rows, columns=2)
        self.by = by

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError, and DataError when the rows have no such column of integers."""
        rows = judged(scored)
        self.keep(_group_keys(rows, self.by), logit(rows), rows.weights * (2 * rows.labels - 1))

    def compute(self) -> dict[str, Tensor]:
        """`{"gauc", "gauc_groups"}`: NaN when no group has both classes; the second counts the groups that have."""
        return _grouped_auc(*self.kept())


def _group_keys(scored: espace.Scored, by: str) -> Tensor:
    keys = extra(scored, by, "gauc.by")
    if keys.is_floating_point():
        raise DataError(f"gauc.by: '{by}' is a column of {keys.dtype}, and groups need a column of integers.")
    return keys.long()


def _grouped_auc(keys: Tensor, logits: Tensor, signed: Tensor) -> dict[str, Tensor]:
    """The average of the module's docstring over (rows,) columns, in any order; signed: weights, those of negatives
    below 0."""
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


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `gauc`."""
    register("gauc", GAUC)
