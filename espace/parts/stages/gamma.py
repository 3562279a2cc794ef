"""An amount above 0 with a gamma distribution of mean m and shape k, whose deviation is m / sqrt(k).

log p(x) = k log(k / m) + (k - 1) log x - k x / m - log Gamma(k)
"""

from __future__ import annotations

import math

from torch import Tensor, nn

import espace
from espace.parts.stages import LARGEST, SMALLEST, Scale, scale_of, start_of_scale


class Gamma(nn.Module):
    """m = exp(z_0), k = least_shape + softplus(z_1), of which it is never less."""

    logits = 2
    limits = (SMALLEST, LARGEST)

    def __init__(self, *, least_shape: Scale = 0.01) -> None:
        super().__init__()
        self.least_shape = least_shape

    def log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """(rows, 2) and amounts (rows,) to log p(x), (rows,)."""
        k, log_x = scale_of(z[:, 1], self.least_shape), x.log()
        ratio = log_x - z[:, 0]  # of x to m
        return k * (k.log() + ratio - ratio.exp()) - log_x - k.lgamma()

    def log_mean(self, z: Tensor) -> Tensor:
        """(batch, 2) to log m, (batch,)."""
        return z[:, 0]

    def start(self, mean: float, variance: float, zeros: float) -> list[float]:
        """The logits at which the mean is this, and the variance where the shape can be so small."""
        shape = max(mean**2 / variance, 1.001 * self.least_shape)
        return [math.log(mean), start_of_scale(shape, self.least_shape)]


@espace.hookimpl
def register_stages(register: espace.Register[espace.StageKind | espace.ValueKind]) -> None:
    """Bring `gamma`."""
    register("gamma", Gamma)
