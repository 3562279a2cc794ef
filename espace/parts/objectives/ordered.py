"""The objective of AITM (Xi et al., KDD 2021, arXiv 2105.08489), for any chain: entire-space terms, stages in order.

    L = sum_v mean_D BCE(y_v, P(v)) + penalty sum_v mean_D max(P(v) - P(parent of v), 0)

The second sum is the paper's "behavioral expectation calibrator", with its alpha as the penalty. It is for `joint`
heads: a head that is conditional on its parent cannot put P(v) above P(parent), so its addend is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

import espace
from espace.parts.objectives.entire_space import EntireSpace


class Ordered:
    """The terms of `entire_space`, and a hinge for every labelled stage behind one parent that is not the root.

    Args:
        penalty: what a unit of P(stage) above P(parent) costs; 0.6 in the paper.
    """

    def __init__(self, chain: espace.Chain, *, penalty: Annotated[float, Ge(0)] = 0.6) -> None:
        self.chain = chain
        self.penalty = penalty
        self._likelihood = EntireSpace(chain)
        self._above = {
            f"{stage}_above_{parent}": (stage, parent)
            for stage in chain.labelled
            for parent in chain.parents(stage)
            if len(chain.parents(stage)) == 1 and parent != chain.root
        }
        self.terms = self._likelihood.terms | {name: self._describe(*pair) for name, pair in self._above.items()}

    def _describe(self, stage: str, parent: str) -> espace.Term:
        loss = f"{self.penalty:g} max(P({stage}) - P({parent}), 0)"
        return espace.Term((stage,), given=None, loss=loss, rows="all impressions", divisor="the same rows")

    def __call__(self, p: espace.Probabilities, labels: espace.Labels) -> Mapping[str, tuple[Tensor, Tensor]]:
        """{term: (loss of each row (batch,), 1 where the row counts (batch,))}."""
        hinges = {name: self._hinge(p, *pair) for name, pair in self._above.items()}
        return {**self._likelihood(p, labels), **hinges}

    def _hinge(self, p: espace.Probabilities, stage: str, parent: str) -> tuple[Tensor, Tensor]:
        above = (p.prob(stage) - p.prob(parent)).clamp(min=0)  # (batch,)
        return self.penalty * above, torch.ones_like(above)


@espace.hookimpl
def register_objectives(register: espace.Register[espace.Objective]) -> None:
    """Bring `ordered`."""
    register("ordered", Ordered)
