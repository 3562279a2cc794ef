"""The labels of a batch, stage by stage: what is known to have happened, what is known not to, what is not known."""

from __future__ import annotations

import torch
from torch import Tensor

from espace.chain.chain import Chain
from espace.chain.grammar import Transition


def counted(chain: Chain) -> tuple[str, ...]:
    """What rows can count for, in the order of the columns of `Labels.counts`: every probability and expectation of the
    chain by its name, then every transition with several outcomes."""
    return (*chain.addresses, *chain.expectations, *(t.name for t in chain.transitions if len(t.outcomes) > 1))


class Labels:
    """The labels of a batch by stage: 1, 0, or not known yet.

    A sampler may make a label -2: it did not happen, and counts as a negative given its parent, which did not happen
    either.

    Args:
        chain: the chain.
        values: (rows, stages but the root) int8 with -1 for unknown, in the order of `chain.stages[1:]`.
        amounts: (rows, values of the chain) float32, in the order of `chain.values`, NaN where the parent did not
            happen or the amount is not known; all are unknown where none are given.
        counts: (rows, names in `counted`) float32, for how many rows each row stands in what is judged under that name:
            0 where it is left out, more than 1 where known rows stand for unknown ones. Without columns every row
            counts once where its label is known.
    """

    def __init__(
        self, chain: Chain, values: Tensor, amounts: Tensor | None = None, counts: Tensor | None = None
    ) -> None:
        self.chain = chain
        self.values = values
        nothing = torch.full((len(values), len(chain.values)), torch.nan, device=values.device)
        self.amounts = nothing if amounts is None else amounts
        self.counts = counts if counts is not None and counts.shape[1] else None

    def of(self, stage: str) -> Tensor:
        """The raw label of a stage: (rows,) int8, 1, 0, -1 or -2; all 1 for the root. Raises ChainError if unknown."""
        self.chain.check(stage)
        if stage == self.chain.root:
            return self.values.new_ones(len(self.values))
        return self.values[:, self.chain.stages.index(stage) - 1]

    def happened(self, stage: str) -> Tensor:
        """1.0 where the stage is known to have happened, else 0.0: (rows,) float32."""
        return (self.of(stage) == 1).float()

    def known(self, stage: str, given: str | None = None) -> Tensor:
        """For how many rows each row stands where a stage, or a value, is judged: (rows,) float32.

        1 where it is known; 0 where it is not, or where it only follows from others that are; more than 1 where known
        rows stand for unknown ones. Judged are all rows, or with `given`, a parent, those in which that happened. An
        objective multiplies by it, and is then right on average whatever is not known. Raises ChainError for an unknown
        name.
        """
        whole = given is None or given == self.chain.root
        inside = 1.0 if given is None else self.happened(given)
        if self.counts is not None:
            place = counted(self.chain).index(stage if whole else f"{stage}_given_{given}")
            known = True if stage in self.chain.expectations else self.of(stage) >= 0  # a sampler may make it unknown
            return self.counts[:, place] * inside * known
        if stage in self.chain.expectations:
            return (~self.amount(stage, given).isnan()).float() * inside
        return (self.of(stage) >= 0).float() * inside

    def known_class(self, transition: Transition) -> Tensor:
        """As `known`, of a whole transition: rows whose parent happened and of whose outcomes one is known, (rows,)."""
        if len(transition.outcomes) == 1:
            return self.known(transition.outcomes[0], transition.parent)
        known = torch.stack([self.of(o) >= 0 for o in transition.outcomes]).any(0).float()
        if self.counts is not None:
            return self.counts[:, counted(self.chain).index(transition.name)] * known
        return known * self.happened(transition.parent)

    def added(self, stage: str, given: str | None = None) -> Tensor:
        """For how many rows each row stands that a sampler made a negative of the stage given its parent, `given`,
        which did not happen: (rows,) float32, 0 elsewhere.

        1, or more where such rows stand for those of which it is not known whether the parent happened.
        """
        made, parents = (self.of(stage) == -2).float(), self.chain.parents(stage)
        given = given or parents[0]
        if self.counts is None or given == self.chain.root:
            return made
        return self.counts[:, counted(self.chain).index(f"{stage}_given_{given}")] * made

    def amount(self, name: str, given: str | None = None) -> Tensor:
        """The observed amount of a value, (rows,) float32: NaN where it is not known or, given its parent, that did not
        happen; without `given`, 0 where it is known that the parent did not happen. Raises ChainError if unknown."""
        value = self.chain.value(name)
        found = self.amounts[:, self.chain.values.index(value)]
        return found if given == value.parent else found.masked_fill(self.of(value.parent) == 0, 0.0)
