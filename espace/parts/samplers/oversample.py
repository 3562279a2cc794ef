"""Positives copied: OVERSAMPLING of the ESMM paper (Ma et al., SIGIR 2018, section 3.2; Weiss 2004).

Rows in which the stage v happened are used k times. With q = P(v given parent) of the data, every loss on the copies as
they are converges to

    P'(v given parent)  =  k q / (1 + (k - 1) q)         odds' = k odds         logit P = logit P' - log k

as in the paper, which makes no correction; AUC within the parent's rows does not see it. Corrected, a copy counts with
1 / k, and every loss converges to the probabilities of the data.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

import espace
from espace.errors import did_you_mean
from espace.parts.samplers import label, reached


class Oversample:
    """Uses the rows in which a stage happened several times."""

    def __init__(self, chain: espace.Chain, *, stage: str, factor: Annotated[int, Ge(2)], correct: bool = True) -> None:
        """stage: of the chain; factor: how often its rows are used; correct: whether copies share the weight of their
        row.

        Raises ValueError for a stage that the chain has not, or that every row is.
        """
        if stage not in chain.stages[1:]:
            raise ValueError(f"stage: '{stage}' is no stage that can happen.{did_you_mean(stage, chain.stages[1:])}")
        self.chain = chain
        self.stage, self.factor, self.correct = stage, factor, correct
        odds = "" if correct else f", so its odds are {factor} times too high, and predictions are not corrected"
        self.effect = f"rows in which {stage} happened are used {factor} times{odds}"

    def rates(self) -> dict[str, list[float]]:
        """How often rows are used that take each class of a transition; nothing without a correction."""
        arrivals = self.chain.arrivals(self.stage) if self.correct else ()
        return {t.name: [float(self.factor) if c == self.stage else 1.0 for c in t.classes] for t in arrivals}

    def __call__(
        self, labels: NDArray[np.int8], weights: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Positions (n,), those of positives `factor` times, and weights (n,)."""
        happened = (label(self.chain, labels, self.stage) == 1) & reached(self.chain, labels, self.stage)
        times = np.where(happened, self.factor, 1)
        rows = np.repeat(np.arange(len(labels)), times)
        return rows, weights[rows]


@espace.hookimpl
def register_samplers(register: espace.Register[espace.Sampler]) -> None:
    """Bring `oversample`."""
    register("oversample", Oversample)
