"""Stage kinds: how the outcome of a stage, or an amount, is distributed given its parent; and what amounts share.

A scale is `least + softplus(z)` for a logit z: never 0, so that a price which repeats itself cannot make a density
infinite.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn import functional as F

LARGEST = 3.4028234663852886e38  # of float32
SMALLEST = 2.0**-126  # the smallest number above 0 of full precision in float32

Scale = Annotated[float, Gt(0)]

_LOG_ROOT_2_PI = math.log(2 * math.pi) / 2


def scale_of(z: Tensor, least: float) -> Tensor:
    """A logit to a scale, (batch,) each."""
    return least + F.softplus(z)


def start_of_scale(scale: float, least: float) -> float:
    """The logit at which the scale is `scale`, which has to be above `least`."""
    rest = scale - least
    return rest + math.log(-math.expm1(-rest))


def log_normal(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """The logarithm of the normal density at x, (batch,)."""
    return -0.5 * ((x - mean) / deviation).square() - deviation.log() - _LOG_ROOT_2_PI


def log_lognormal(x: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """The logarithm of the density of x > 0 whose logarithm is normal with mean mu and deviation sigma, (batch,)."""
    log_x = x.log()
    return log_normal(log_x, mu, sigma) - log_x


def start_of_log(mean: float, variance: float, least: float) -> list[float]:
    """The logits of mu and sigma of the lognormal distribution with this mean and variance; sigma is above `least`."""
    sigma = max(math.sqrt(math.log1p(variance / mean**2)), 1.001 * least)
    return [math.log(mean) - sigma**2 / 2, start_of_scale(sigma, least)]


def positive(x: Tensor) -> Tensor:
    """x where it is above 0, else 1, so that its logarithm and its gradient are finite."""
    return torch.where(x > 0, x, 1.0)
