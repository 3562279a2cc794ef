"""How near predictions are to true probabilities, where a simulator or an experiment knows them, free of luck.

Spearman's rank correlation is Pearson's of the ranks. Here a row's rank is the weight of the rows below it and half of
the weight of those beside it, itself included, so that a row of weight 2 is two rows, and equal weights give the usual
mid-ranks:

    rank_correlation = cov( rank of P, rank of the truth ) / sqrt( var( rank of P ) var( rank of the truth ) ), weighted
"""

from __future__ import annotations

import re
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

import espace
from espace.parts.metrics import KeepingMetric, extra, hashed, judged


class Truth(KeepingMetric):
    """Rank correlation with the true probabilities, predicted over true events, and the root mean squared difference.

    Args:
        column: the extra column with the true probabilities; rows where it is NaN are left out.
        name: put before the names of the three, to tell several truths apart.
        max_rows: how many rows each rank keeps at most for the rank correlation; 32 bytes each.

    Raises ValueError for a name that cannot be part of another.
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor  # (4,), weighted: rows, P, true probabilities, squared differences

    def __init__(self, *, column: str, name: str = "", max_rows: Annotated[int, Ge(1)] = 2_000_000) -> None:
        super().__init__(max_rows, columns=3)
        if not re.fullmatch(r"\w*", name):
            raise ValueError(f"name: '{name}' is to be part of a name. Write letters, digits and underscores.")
        self.column = column
        self.prefix = f"{name}_" if name else ""
        self.add_state("sums", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError, and DataError when the rows have no such column."""
        rows = judged(scored)
        truth = extra(rows, self.column, "truth.column").double()
        known = (~truth.isnan()).nonzero().squeeze(1)
        q, log_p, w = (t.index_select(0, known) for t in (truth, rows.log_prob, rows.weights))
        p = log_p.exp()
        self.sums += torch.stack([w.sum(), w @ p, w @ q, w @ (p - q).square()])
        self.keep(hashed(_bits(log_p)) ^ _bits(q), log_p, q, w)

    def compute(self) -> dict[str, Tensor]:
        """`{"rank_correlation", "predicted_over_true", "rmse"}`, with the prefix: NaN without rows; the first also
        where the predictions or the truth are all the same, the second where the truth is 0."""
        weight, predicted, true, squares = self.sums.unbind()
        _, log_p, q, w = self.kept()
        found = {
            "rank_correlation": _correlation(_mid_ranks(log_p, w), _mid_ranks(q, w), w),
            "predicted_over_true": torch.where(true > 0, predicted / true, torch.nan),
            "rmse": (squares / weight).sqrt(),
        }
        return {f"{self.prefix}{name}": value for name, value in found.items()}


def _bits(x: Tensor) -> Tensor:
    """float64 as int64, equal numbers alike."""
    return (x + 0.0).view(torch.int64)


def _mid_ranks(x: Tensor, weights: Tensor) -> Tensor:
    """The weight of the rows below each, and half of that of those beside it: (rows,)."""
    values, place = torch.unique(x, return_inverse=True)
    mass = weights.new_zeros(len(values)).index_add_(0, place, weights)
    return (mass.cumsum(0) - mass / 2)[place]


def _correlation(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Weighted, of two columns (rows,); NaN where one is constant."""
    if len(weights) == 0 or (a == a[0]).all() or (b == b[0]).all():
        return weights.new_full((), torch.nan)
    a, b = (x - (weights @ x) / weights.sum() for x in (a, b))
    return (weights * a) @ b / ((weights * a) @ a * ((weights * b) @ b)).sqrt()


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `truth`."""
    register("truth", Truth)
