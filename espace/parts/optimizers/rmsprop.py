"""RMSprop (Tieleman and Hinton, 2012): gradients divided by the root of a mean of their squares."""

from __future__ import annotations

import torch

import espace
from espace.parts.optimizers import Groups, NotNegative, Positive, Share


def rmsprop(
    groups: Groups,
    *,
    alpha: Share = 0.99,
    eps: Positive = 1e-8,
    momentum: Share = 0.0,
    weight_decay: NotNegative = 0.0,
) -> torch.optim.Optimizer:
    """Torch's RMSprop; `alpha` is how much of the mean of squares is kept."""
    return torch.optim.RMSprop(groups, alpha=alpha, eps=eps, momentum=momentum, weight_decay=weight_decay)


@espace.hookimpl
def register_optimizers(register: espace.Register[espace.Optimizer]) -> None:
    """Bring `rmsprop`."""
    register("rmsprop", rmsprop)
