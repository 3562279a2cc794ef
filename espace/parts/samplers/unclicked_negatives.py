"""Rows without the parent as negatives: AMAN of the ESMM paper (SIGIR 2018, section 3.2; Pan et al., ICDM 2008).

The conditional of stage v given u learns from the rows in which u happened, as in BASE, and from a share s of those in
which it did not, taken for negatives. With p = P(u) and q = P(v given u), what is served as P(v given u) converges to

    p q / (p + s (1 - p))

which is q for s -> 0 and P(v) for s = 1: it is too low by a factor that differs from row to row, so nothing corrects
it. All other terms learn from the rows that they had.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

import espace
from espace.parts.samplers import NEGATIVE, label, parent_of


class UnclickedNegatives:
    """Takes a share of the rows without the parent for negatives of one conditional."""

    objectives = ("parent_space",)

    def __init__(self, chain: espace.Chain, *, stage: str, rate: Annotated[float, Gt(0), Le(1)]) -> None:
        """stage: v, with one parent that is not the root; rate: s. Raises ValueError for another stage."""
        self.chain = chain
        self.parent = parent_of(chain, stage)
        self.stage, self.rate = stage, rate
        outcomes = next(t.outcomes for t in chain.arrivals(stage))
        self._columns = np.array([s in outcomes for s in chain.stages[1:]])
        self.effect = (
            f"{rate:g} of the rows without {self.parent} are negatives of {stage} given {self.parent}, which comes"
            f" out as P({stage}) / (P({self.parent}) + {rate:g} (1 - P({self.parent}))); predictions are not corrected"
        )

    def __call__(
        self, labels: NDArray[np.int8], weights: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int8]]:
        """All positions (rows,), weights (rows,), and labels (rows, stages but the root) with the new negatives."""
        chosen = (label(self.chain, labels, self.parent) == 0) & (random.random(len(labels)) < self.rate)
        changed = labels.copy()
        changed[np.ix_(chosen, self._columns)] = NEGATIVE
        return np.arange(len(labels)), weights, changed


@espace.hookimpl
def register_samplers(register: espace.Register[espace.Sampler]) -> None:
    """Bring `unclicked_negatives`."""
    register("unclicked_negatives", UnclickedNegatives)
