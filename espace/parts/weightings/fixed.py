"""Fixed weights: the loss is the weighted sum of the terms; ESMM (SIGIR 2018, eq. 3) has weights of 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import espace


class Fixed(nn.Module):
    """Sum of weight times term; the weights come from `stages.<name>.weight`."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, terms: Mapping[str, Tensor]) -> Tensor:
        """{term: scalar} to one scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()


@espace.hookimpl
def register_weightings(register: espace.Register[espace.Weighting]) -> None:
    """Bring `fixed`."""
    register("fixed", Fixed)
