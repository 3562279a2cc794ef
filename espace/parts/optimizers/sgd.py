"""Stochastic gradient descent, with the momentum of Sutskever et al. (ICML 2013) if wanted."""

from __future__ import annotations

import torch

import espace
from espace.parts.optimizers import Groups, NotNegative, Share


def sgd(
    groups: Groups,
    *,
    momentum: Share = 0.0,
    nesterov: bool = False,
    weight_decay: NotNegative = 0.0,
) -> torch.optim.Optimizer:
    """Torch's SGD; `nesterov` needs a momentum."""
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


@espace.hookimpl
def register_optimizers(register: espace.Register[espace.Optimizer]) -> None:
    """Bring `sgd`."""
    register("sgd", sgd)
