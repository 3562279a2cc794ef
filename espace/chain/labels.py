"""The labels of a batch, stage by stage: what is known to have happened, what is known not to, what is not known."""

from __future__ import annotations

import torch
from torch import Tensor

from espace.chain.chain import Chain


class Labels:
    """The labels of a batch by stage: 1, 0, or not known yet.

    A sampler may make a label -2: it did not happen, and counts as a negative given its parent, which did not happen
    either.

    Args:
        chain: the chain.
        values: (rows, stages but the root) int8 with -1 for unknown, in the order of `chain.stages[1:]`.
        amounts: (rows, values of the chain) float32, in the order of `chain.values`, NaN where the parent did not
            happen or the amount is not known; all are unknown where none are given.
    """

    def __init__(self, chain: Chain, values: Tensor, amounts: Tensor | None = None) -> None:
        self.chain = chain
        self.values = values
        nothing = torch.full((len(values), len(chain.values)), torch.nan, device=values.device)
        self.amounts = nothing if amounts is None else amounts

    def of(self, stage: str) -> Tensor:
        """The raw label of a stage: (rows,) int8, 1, 0, -1 or -2; all 1 for the root. Raises ChainError if unknown."""
        self.chain.check(stage)
        if stage == self.chain.root:
            return self.values.new_ones(len(self.values))
        return self.values[:, self.chain.stages.index(stage) - 1]

    def happened(self, stage: str) -> Tensor:
        """1.0 where the stage is known to have happened, else 0.0: (rows,) float32."""
        return (self.of(stage) == 1).float()

    def known(self, stage: str) -> Tensor:
        """1.0 where the label is known, else 0.0: (rows,) float32."""
        return (self.of(stage) >= 0).float()

    def added(self, stage: str) -> Tensor:
        """1.0 where a sampler made the row a negative of the stage given its parent, else 0.0: (rows,) float32."""
        return (self.of(stage) == -2).float()

    def amount(self, name: str, given: str | None = None) -> Tensor:
        """The observed amount of a value, (rows,) float32: NaN where it is not known or, given its parent, that did not
        happen; without `given`, 0 where it is known that the parent did not happen. Raises ChainError if unknown."""
        value = self.chain.value(name)
        found = self.amounts[:, self.chain.values.index(value)]
        return found if given == value.parent else found.masked_fill(self.of(value.parent) == 0, 0.0)
