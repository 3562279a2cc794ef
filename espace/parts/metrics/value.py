"""How good the expectations of a value are: by how much they miss, how they rank, whether they add up.

The normalised Gini coefficient (Wang et al., 2019, arXiv 1912.07753, recommend it) says how well expectations E rank
the amounts x. With F the share of the rows below a row, ties counting one half,

    gini = cov( x, F of E ) / cov( x, F of x )

is 1 for the order of the amounts themselves, and 0 for none. It is exact up to a number of rows, and beyond it from
bins that follow the data, of expectations and of amounts.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

import espace
from espace.errors import NonFiniteError
from espace.parts.metrics import RankingMetric

_ROUNDING = 1e-9  # a covariance is none when it is less than so much of what it is a sum of


class ValueMetric(RankingMetric):
    """Rows, mean absolute error, normalised Gini coefficient, and predicted over observed amounts. For values only.

    Args:
        bins: how many bins the rows beyond `max_rows` are merged into, for the Gini coefficient.
        max_rows: up to how many rows, on each rank, that is exact; 48 bytes each.
    """

    is_differentiable = False
    full_state_update = False
    of_values = True

    sums: Tensor  # (5,): rows, weight, absolute errors, expectations, amounts; weighted but for the first
    by_expectation: list[Tensor]  # (rows, 3): expectation, weight, weighted amount
    by_amount: list[Tensor]  # the same in the order of the amounts themselves

    def __init__(self, *, bins: Annotated[int, Ge(1)] = 65_536, max_rows: Annotated[int, Ge(1)] = 1_000_000) -> None:
        super().__init__(max_rows, bins, "by_expectation", "by_amount")
        self.add_state("sums", torch.zeros(5, dtype=torch.float64), dist_reduce_fx="sum")

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
        self.keep("by_expectation", e, w, w * x)
        self.keep("by_amount", x, w, w * x)

    def compute(self) -> dict[str, Tensor]:
        """`{"rows", "mae", "gini", "predicted_over_observed"}`: NaN without rows, the last two also where all amounts
        are 0, and gini where they are all the same."""
        rows, weight, errors, expected, amounts = self.sums.unbind()
        best, scale = _covariance(*self.ordered("by_amount"))
        found, _ = _covariance(*self.ordered("by_expectation"))
        gini = torch.where(best > _ROUNDING * scale, found / best, torch.nan)
        ratio = torch.where(amounts != 0, expected / amounts, torch.nan)
        return {"rows": rows, "mae": errors / weight, "gini": gini, "predicted_over_observed": ratio}

    def masses(self, rows: Tensor) -> Tensor:
        """Weight, and how far the amounts lie from their mean."""
        _, weight, amount = rows.unbind(1)
        mean = amount.sum() / weight.sum()
        return torch.stack([weight, (amount - mean * weight).abs()], dim=1)


def _covariance(_: Tensor, weight: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Of the amounts and their place in the order, (keys,) each, times the squared weight; and its scale."""
    total = weight.sum()
    place = weight.cumsum(0) - weight / 2 - total / 2
    return amount @ place, amount.abs().sum() * total


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `value`."""
    register("value", ValueMetric)
