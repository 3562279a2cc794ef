"""Rejection sampling by a propensity: UNBIAS of the ESMM paper (SIGIR 2018, section 3.2; W. Zhang et al., KDD 2016).

The rows x in which the parent u of stage v happened come with density P(u|x) f(x) / P(u), those of the entire space
with f(x). A row is accepted for the conditional of v with probability

    min(1, floor / P(u|x))

P(u|x) being what a trained run predicts, so that accepted rows come with density f(x) wherever P(u|x) >= floor: floor
is 1 / M for the bound M of rejection sampling on 1 / P(u|x), and where P(u|x) is lower all rows are accepted. The
chance of a row depends on x alone, so P(v given u, x) keeps its optimum and nothing has to be corrected. In expectation
it is weighting by 1 / P(u|x) with a clip. All terms before v learn from the rows that they had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

import espace
from espace.parts.samplers import label, parent_of


class Rejection:
    """Thins the rows of one conditional, so that those that are left are like all rows."""

    objectives = ("parent_space",)

    def __init__(self, chain: espace.Chain, *, run: str, stage: str, floor: Annotated[float, Gt(0), Le(1)]) -> None:
        """run: folder of a run whose chain has the parent of `stage`; stage: with one parent that is not the root;
        floor: the P(parent) up to which all rows are accepted. Raises ValueError for another stage."""
        self.chain = chain
        self.parent = parent_of(chain, stage)
        self.stage, self.floor = stage, floor
        self.scored_by = (run, self.parent)
        choice = chain.arrivals(stage)[0].children
        self._columns = np.array([any(chain.leads(c, s) for c in choice) for s in chain.stages[1:]])
        self.effect = (
            f"a row with {self.parent} counts for {stage} with probability min(1, {floor:g} / P({self.parent})),"
            f" P of {run}; P({stage} given {self.parent}) keeps its optimum, predictions need no correction"
        )

    def __call__(
        self,
        labels: NDArray[np.int8],
        weights: NDArray[np.float32],
        random: np.random.Generator,
        score: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int8]]:
        """All positions (rows,), weights (rows,), and labels (rows, stages but the root): where a row is rejected
        `stage`, and what follows it, is not known."""
        drawn = random.random(len(labels))
        rows = np.flatnonzero(label(self.chain, labels, self.parent) == 1)
        rejected = rows[drawn[rows] * score(rows) >= self.floor]
        changed = labels.copy()
        changed[np.ix_(rejected, self._columns)] = -1
        return np.arange(len(labels)), weights, changed


@espace.hookimpl
def register_samplers(register: espace.Register[espace.Sampler | espace.ScoredSampler]) -> None:
    """Bring `rejection`."""
    register("rejection", Rejection)
