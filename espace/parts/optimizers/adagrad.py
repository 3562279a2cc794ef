"""Adagrad (Duchi et al., JMLR 2011): a rate for each weight, which falls with the squares of its gradients."""

from __future__ import annotations

import torch

import espace
from espace.parts.optimizers import Groups, NotNegative, Positive


def adagrad(
    groups: Groups,
    *,
    eps: Positive = 1e-10,
    initial: NotNegative = 0.0,
    weight_decay: NotNegative = 0.0,
) -> torch.optim.Optimizer:
    """Torch's Adagrad; `initial` is the sum of squares at the start."""
    return torch.optim.Adagrad(groups, eps=eps, initial_accumulator_value=initial, weight_decay=weight_decay)


@espace.hookimpl
def register_optimizers(register: espace.Register[espace.Optimizer]) -> None:
    """Bring `adagrad`."""
    register("adagrad", adagrad)
