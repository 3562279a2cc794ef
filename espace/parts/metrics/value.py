"""How good the expectations of a value are: by how much they miss, how they rank, whether they add up.

The normalised Gini coefficient (Wang et al., 2019, arXiv 1912.07753, recommend it) says how well expectations E rank
the amounts x. With F the share of the rows below a row, ties counting one half,

    gini = cov( x, F of E ) / cov( x, F of x )

is 1 for the order of the amounts themselves, and 0 for none. F comes from a histogram over the first 16 bits of a
number in 32, whose bins are 1/128 of what falls into them wide; rows are taken to be spread evenly in a bin. Its memory
does not grow with the rows.
"""

from __future__ import annotations

import torch
import torchmetrics
from torch import Tensor

import espace
from espace.errors import NonFiniteError

_BINS = 65_536
_ROUNDING = 1e-9  # a covariance is none when it is less than so much of what it is a sum of


class ValueMetric(torchmetrics.Metric):
    """Rows, mean absolute error, normalised Gini coefficient, and predicted over observed amounts. For values only."""

    is_differentiable = False
    full_state_update = False
    of_values = True

    sums: Tensor  # (5,): rows, weight, absolute errors, expectations, amounts; weighted but for the first
    by_expectation: Tensor  # (4, bins): weight, amount, place in the bin, amount times place; weighted
    by_amount: Tensor  # the same with bins of the amounts themselves

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("by_expectation", "by_amount"):
            self.add_state(name, torch.zeros(4, _BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.ScoredValue) -> None:
        """Add rows. Raises NonFiniteError."""
        rows = scored.weights.nonzero().squeeze(1)
        e, x, w = (t.index_select(0, rows).double() for t in (scored.predicted, scored.labels, scored.weights))
        if not e.isfinite().all():
            raise NonFiniteError(
                f"metrics: {int((~e.isfinite()).sum()):,} of {len(e):,} expectations are NaN or infinite. Lower"
                " the learning rate, or look for huge amounts, and huge values among the number features."
            )
        self.sums += torch.stack([torch.ones_like(w).sum(), w.sum(), w @ (e - x).abs(), w @ e, w @ x])
        for histogram, by in ((self.by_expectation, e), (self.by_amount, x)):
            index, place = _place(by.float())
            histogram.index_add_(1, index, torch.stack([w, w * x, w * place, w * x * place]))

    def compute(self) -> dict[str, Tensor]:
        """`{"rows", "mae", "gini", "predicted_over_observed"}`: NaN without rows, the last two also where all amounts
        are 0, and gini where they are all the same."""
        rows, weight, errors, expected, amounts = self.sums.unbind()
        best, scale = _covariance(self.by_amount)
        gini = torch.where(best > _ROUNDING * scale, _covariance(self.by_expectation)[0] / best, torch.nan)
        ratio = torch.where(amounts != 0, expected / amounts, torch.nan)
        return {"rows": rows, "mae": errors / weight, "gini": gini, "predicted_over_observed": ratio}


def _place(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the bins numbers (rows,) float32 fall in, in order, (rows,) int64, and where in it, from 0 to 1."""
    bits = x.view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF)) + 2**31
    return ordered >> 16, (ordered & 0xFFFF) / 2**16


def _covariance(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Of the amounts and their place in the order of what the bins are of, times the squared weight; and its scale."""
    weight, amount, place, product = histogram
    below = weight.cumsum(0) - weight
    middle = (place / weight).nan_to_num(0.0)  # the mean place in the bin
    ranked = amount * (below + weight / 2) + weight * (product - middle * amount)
    total = weight.sum()
    return ranked.sum() - amount.sum() * total / 2, amount.abs().sum() * total


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `value`."""
    register("value", ValueMetric)
