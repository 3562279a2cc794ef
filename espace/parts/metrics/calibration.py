"""Whether predicted probabilities are the rates that occur, by bins that follow the data.

Predicted over observed events is the "calibration" of He et al. (ADKDD 2014, section 2): above 1 promises too much.
Expected calibration error (Naeini et al., AAAI 2015), here over bins b of equal mass, since at a rate of 0.001 bins of
equal width put everything into the first:

    ECE = sum over b of |sum of P in b - sum of y in b| / number of rows
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

import espace
from espace.parts.metrics import RankingMetric, judged, logit


class Calibration(RankingMetric):
    """Predicted over observed events, and the weighted expected calibration error.

    Args:
        points: how many bins of equal mass the error is summed over.
        bins: how many bins the rows beyond `max_rows` are merged into, of equal mass wherever the logits lie.
        max_rows: up to how many rows, on each rank, each is kept; 24 bytes each.
    """

    is_differentiable = False
    full_state_update = False

    by_logit: list[Tensor]  # (rows, 3): logit, weight, weight of P - label
    sums: Tensor  # (2,): weighted sums of P and of labels

    def __init__(
        self,
        *,
        points: Annotated[int, Ge(1)] = 20,
        bins: Annotated[int, Ge(1)] = 65_536,
        max_rows: Annotated[int, Ge(1)] = 1_000_000,
    ) -> None:
        super().__init__(max_rows, bins, "by_logit")
        self.points = points
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError."""
        rows = judged(scored)
        predicted = rows.log_prob.exp()
        self.sums += torch.stack([rows.weights @ predicted, rows.weights @ rows.labels])
        self.keep("by_logit", logit(rows), rows.weights, rows.weights * (predicted - rows.labels))

    def masses(self, rows: Tensor) -> Tensor:
        """The weights: the other thing that is counted may be negative."""
        return rows[:, 1:2].expand(-1, 2)

    def compute(self) -> dict[str, Tensor]:
        """`{"predicted_over_observed", "ece"}`: NaN without rows; the first also NaN without positives."""
        predicted, happened = self.sums
        _, mass, gap = self._merged(self.points)
        ratio = torch.where(happened > 0, predicted / happened, torch.nan)
        return {"predicted_over_observed": ratio, "ece": gap.abs().sum() / mass.sum()}

    def curve(self, points: int = 20) -> dict[str, Tensor]:
        """The reliability curve: `{"predicted", "observed", "rows"}`, each (at most `points`,), from low P to high.

        Mean prediction, observed rate and summed weight of bins of equal mass; rows of one logit stay together. Call it
        on all ranks, as `compute`.
        """
        with self.sync_context():
            predicted, mass, gap = self._merged(points)
        return {"predicted": predicted / mass, "observed": (predicted - gap) / mass, "rows": mass}

    def _merged(self, points: int) -> Tensor:
        """Sums of P, of weights and of the weighted P - label over bins of equal mass: (3, at most points)."""
        key, weight, gap = self.ordered("by_logit")
        fine = torch.stack([weight * key.sigmoid(), weight, gap])
        middle = weight.cumsum(0) - weight / 2
        target = (middle / weight.sum() * points).nan_to_num(0).long().clamp(max=points - 1)
        merged = fine.new_zeros(3, points).index_add_(1, target, fine)
        return merged[:, merged[1] > 0]


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `calibration`."""
    register("calibration", Calibration)
