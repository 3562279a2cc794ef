"""An amount above 0 whose logarithm is normal: log x ~ N(mu, sigma^2). The default of every value.

E[x] = exp(mu + sigma^2 / 2)
"""

from __future__ import annotations

from torch import Tensor, nn

import espace
from espace.parts.stages import LARGEST, SMALLEST, Scale, log_lognormal, scale_of, start_of_log


class LogNormal(nn.Module):
    """log x ~ N(z_0, sigma^2), sigma = least_sigma + softplus(z_1), of which it is never less."""

    logits = 2
    limits = (SMALLEST, LARGEST)

    def __init__(self, *, least_sigma: Scale = 0.01) -> None:
        super().__init__()
        self.least_sigma = least_sigma

    def log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """(rows, 2) and amounts (rows,) to log p(x), (rows,)."""
        return log_lognormal(x, z[:, 0], scale_of(z[:, 1], self.least_sigma))

    def log_mean(self, z: Tensor) -> Tensor:
        """(batch, 2) to log E[x], (batch,)."""
        return z[:, 0] + scale_of(z[:, 1], self.least_sigma).square() / 2

    def start(self, mean: float, variance: float, zeros: float) -> list[float]:
        """The logits at which the mean is this, and the variance where sigma can be so small."""
        return start_of_log(mean, variance, self.least_sigma)


@espace.hookimpl
def register_stages(register: espace.Register[espace.StageKind | espace.ValueKind]) -> None:
    """Bring `lognormal`."""
    register("lognormal", LogNormal)
