"""A stage that happens or not, with log-odds z: P(stage given parent) = sigmoid(z). The default of every stage."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

import espace


class Binary(nn.Module):
    """P = sigmoid(z), the logistic model."""

    logits = 1

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 1) to log P and log(1 - P), (batch,) each."""
        return F.logsigmoid(z[:, 0]), F.logsigmoid(-z[:, 0])

    def start(self, rate: float) -> list[float]:
        """The logits at which P is `rate`."""
        return [math.log(rate / (1 - rate))]


@espace.hookimpl
def register_stages(register: espace.Register[espace.StageKind | espace.ValueKind]) -> None:
    """Bring `binary`."""
    register("binary", Binary)
