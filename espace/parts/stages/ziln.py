"""An amount that is 0 with probability 1 - p, else lognormal (ZILN, Wang et al., 2019, arXiv 1912.07753).

-log p(x) = -log(1 - p) where x = 0, else -log p + log(x sigma sqrt(2 pi)) + (log x - mu)^2 / (2 sigma^2)
E[x] = p exp(mu + sigma^2 / 2)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import espace
from espace.parts.stages import LARGEST, Scale, log_lognormal, positive, scale_of, start_of_log


class ZILN(nn.Module):
    """p = sigmoid(z_0), mu = z_1, sigma = least_sigma + softplus(z_2), of which it is never less."""

    logits = 3
    limits = (0.0, LARGEST)

    def __init__(self, *, least_sigma: Scale = 0.01) -> None:
        super().__init__()
        self.least_sigma = least_sigma

    def log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """(rows, 3) and amounts (rows,) to log p(x), of x = 0 the logarithm of its probability, (rows,)."""
        amount = log_lognormal(positive(x), z[:, 1], scale_of(z[:, 2], self.least_sigma))
        return torch.where(x > 0, F.logsigmoid(z[:, 0]) + amount, F.logsigmoid(-z[:, 0]))

    def log_mean(self, z: Tensor) -> Tensor:
        """(batch, 3) to log E[x], (batch,)."""
        return F.logsigmoid(z[:, 0]) + z[:, 1] + scale_of(z[:, 2], self.least_sigma).square() / 2

    def start(self, mean: float, variance: float, zeros: float) -> list[float]:
        """The logits at which the mean, the share of zeros and, where sigma can be so small, the variance are these.

        Of a share of 0 or 1 it is one part in a million away.
        """
        p = min(max(1 - zeros, 1e-6), 1 - 1e-6)
        above = mean / p
        square = (variance + mean**2) / p
        return [math.log(p / (1 - p)), *start_of_log(above, max(square - above**2, 0.0), self.least_sigma)]


@espace.hookimpl
def register_stages(register: espace.Register[espace.StageKind | espace.ValueKind]) -> None:
    """Bring `ziln`."""
    register("ziln", ZILN)
