"""Log loss, and log loss in units of the best constant prediction.

Normalised entropy (He et al., ADKDD 2014, section 2), with p the observed rate: below 1 is better than always p.

    NE = log loss / -( p log p + (1 - p) log(1 - p) )
"""

from __future__ import annotations

import torch
import torchmetrics
from torch import Tensor

import espace
from espace.parts.metrics import judged


class LogLoss(torchmetrics.Metric):
    """Weighted mean of -( y log P + (1 - y) log(1 - P) ), in nats, of two exact tails; a P above 1 counts as 1."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    loss: Tensor
    weight: Tensor
    positive: Tensor  # weight of the positives

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "weight", "positive"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scored: espace.Scored) -> None:
        """Add rows. Raises NonFiniteError."""
        rows = judged(scored)
        log_likelihood = torch.where(rows.labels > 0, rows.log_prob.clamp(max=0), rows.log_not_prob)
        self.loss -= rows.weights @ log_likelihood
        self.weight += rows.weights.sum()
        self.positive += rows.weights @ rows.labels

    def compute(self) -> dict[str, Tensor]:
        """`{"log_loss", "normalized_entropy"}`: NaN without rows; the second also NaN unless both classes occur."""
        log_loss = self.loss / self.weight
        rate = self.positive / self.weight
        entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
        normalized = torch.where(entropy > 0, log_loss / entropy, torch.nan)
        return {"log_loss": log_loss, "normalized_entropy": normalized}


@espace.hookimpl
def register_metrics(register: espace.Register[espace.Metric | espace.ValueMetric]) -> None:
    """Bring `log_loss`."""
    register("log_loss", LogLoss)
