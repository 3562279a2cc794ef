"""Adam with weight decay beside the gradient (Loshchilov and Hutter, ICLR 2019, algorithm 2)."""

from __future__ import annotations

import torch

import espace
from espace.parts.optimizers import Groups, NotNegative, Positive, Share


def adamw(
    groups: Groups,
    *,
    betas: tuple[Share, Share] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
) -> torch.optim.Optimizer:
    """Torch's AdamW: every weight, and every row of a table, shrinks in every step."""
    return torch.optim.AdamW(groups, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


@espace.hookimpl
def register_optimizers(register: espace.Register[espace.Optimizer]) -> None:
    """Bring `adamw`."""
    register("adamw", adamw)
