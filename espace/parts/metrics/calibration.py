"""Whether predicted probabilities are the rates that occur, in memory that does not grow with the rows.

Predicted over observed events is the "calibration" of He et al. (ADKDD 2014, section 2): above 1 promises too much.
Expected calibration error (Naeini et al., AAAI 2015), here over bins b of equal mass, since at a rate of 0.001 bins of
equal width put everything into the first:

    ECE = sum over b of |sum of P in b - sum of y in b| / number of rows
"""

from __future__ import annotations

from typing import Annotated

import torch
import torchmetrics
from annotated_types import Ge
from torch import Tensor

import espace
from espace.parts.metrics import judged, place


class Calibration(torchmetrics.Metric):
    """Predicted over observed events, and the weighted expected calibration error.

    Args:
        points: how many bins of equal mass the error is summed over.
        bins: how many fine bins over the logits from -40 to 40 those are merged from; 24 bytes each.
    """

    is_differentiable = False
    full_state_update = False

    predicted: Tensor  # (bins,), weighted sum of P
    observed: Tensor  # (bins,), weighted sum of labels
    mass: Tensor  # (bins,), weight

    def __init__(self, *, points: Annotated[int, Ge(1)] = 20, bins: Annotated[int, Ge(1)] = 65_536) -> None:
        super().__init__()
        self.points = points
        self.bins = bins
        for name in ("predicted", "observed", "mass"):
            self.add_state(name, torch.zeros(bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError."""
        rows = judged(scored)
        index, _ = place(rows, self.bins)
        self.predicted.index_add_(0, index, rows.weights * rows.log_prob.exp())
        self.observed.index_add_(0, index, rows.weights * rows.labels)
        self.mass.index_add_(0, index, rows.weights)

    def compute(self) -> dict[str, Tensor]:
        """`{"predicted_over_observed", "ece"}`: NaN without rows; the first also NaN without positives."""
        predicted, observed, mass = self._merged(self.points)
        happened = observed.sum()
        ratio = torch.where(happened > 0, predicted.sum() / happened, torch.nan)
        return {"predicted_over_observed": ratio, "ece": (predicted - observed).abs().sum() / mass.sum()}

    def curve(self, points: int = 20) -> dict[str, Tensor]:
        """The reliability curve: `{"predicted", "observed", "rows"}`, each (at most `points`,), from low P to high.

        Mean prediction, observed rate and summed weight of bins of equal mass; rows of one logit stay together. Call it
        on all ranks, as `compute`.
        """
        with self.sync_context():
            predicted, observed, mass = self._merged(points)
        return {"predicted": predicted / mass, "observed": observed / mass, "rows": mass}

    def _merged(self, points: int) -> Tensor:
        """Sums of P, of labels and of weights over bins of equal mass: (3, at most points)."""
        fine = torch.stack([self.predicted, self.observed, self.mass])
        middle = self.mass.cumsum(0) - self.mass / 2
        target = (middle / self.mass.sum() * points).nan_to_num(0).long().clamp(max=points - 1)
        merged = fine.new_zeros(3, points).index_add_(1, target, fine)
        return merged[:, merged[2] > 0]


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `calibration`."""
    register("calibration", Calibration)
