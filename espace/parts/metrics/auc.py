"""Area under the ROC curve from a histogram over the logit, in memory that does not grow with the rows.

    AUC = P(a positive scores above a negative) + P(they tie) / 2

Bins even in the logit stay fine at any rate, where bins even in the probability put all of a rate of 0.001 into one. A
positive and a negative in one bin are told apart by where the two classes lie in it on average,

    P(positive above negative | both in bin b) = 1/2 + mean place of positives in b - mean place of negatives in b,

which is exact when either class is spread evenly over the bin, and 1/2 for a tie.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torchmetrics
from annotated_types import Ge
from torch import Tensor

import espace
from espace.parts.metrics import judged, place


class AUC(torchmetrics.Metric):
    """Weighted AUC; NaN unless both classes occur.

    Args:
        bins: how many bins over the logits from -40 to 40; 32 bytes each.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    mass: Tensor  # (2 * bins,), weight of the negatives, then of the positives
    places: Tensor  # (2 * bins,), the same times where in its bin each row lies, from 0 to 1

    def __init__(self, *, bins: Annotated[int, Ge(1)] = 65_536) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("mass", torch.zeros(2 * bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("places", torch.zeros(2 * bins, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError."""
        rows = judged(scored)
        index, place_in_bin = place(rows, self.bins)
        cell = index + self.bins * rows.labels.long()
        self.mass.index_add_(0, cell, rows.weights)
        self.places.index_add_(0, cell, rows.weights * place_in_bin)

    def compute(self) -> dict[str, Tensor]:
        """`{"auc": scalar}`."""
        negatives, positives = self.mass.view(2, -1)
        mean_negative, mean_positive = (self.places / self.mass).view(2, -1)
        wins_in_bin = (0.5 + mean_positive - mean_negative).clamp(0, 1).nan_to_num(0.5)
        below = negatives.cumsum(0) - negatives
        wins = positives * (below + wins_in_bin * negatives)
        return {"auc": wins.sum() / (positives.sum() * negatives.sum())}


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `auc`."""
    register("auc", AUC)
