"""An amount of either sign: x ~ N(m, d^2), in units of what training has seen.

    m = M + D z_0,   d = D (least_deviation + softplus(z_1))

M and D are mean and deviation of the amounts in the training rows, so that logits are about 1 whatever the currency.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

import espace
from espace.parts.stages import LARGEST, log_normal, scale_of, start_of_scale


class Normal(nn.Module):
    """x ~ N(m, d^2); d is never less than least_deviation of D."""

    logits = 2
    limits = (-LARGEST, LARGEST)

    middle: Tensor  # M
    unit: Tensor  # D

    def __init__(self, *, least_deviation: Annotated[float, Gt(0), Lt(1)] = 0.01) -> None:
        super().__init__()
        self.least_deviation = least_deviation
        self.register_buffer("middle", torch.zeros(()))
        self.register_buffer("unit", torch.ones(()))

    def log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """(rows, 2) and amounts (rows,) to log p(x), (rows,)."""
        away = (x - self.middle) / self.unit
        return log_normal(away, z[:, 0], scale_of(z[:, 1], self.least_deviation)) - self.unit.log()

    def mean(self, z: Tensor) -> Tensor:
        """(batch, 2) to m, (batch,)."""
        return self.middle + self.unit * z[:, 0]

    def start(self, mean: float, variance: float, zeros: float) -> list[float]:
        """Keep mean and deviation as M and D, and give the logits at which m and d are these."""
        self.middle.fill_(mean)
        self.unit.fill_(math.sqrt(variance))
        return [0.0, start_of_scale(1.0, self.least_deviation)]


@espace.hookimpl
def register_stages(register: espace.Register[espace.StageKind | espace.ValueKind]) -> None:
    """Bring `normal`."""
    register("normal", Normal)
