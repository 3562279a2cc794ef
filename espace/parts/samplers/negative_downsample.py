"""Fewer negatives, the rest counting for those left out (negative down-sampling, He et al., ADKDD 2014).

A row is a negative of stage v when a parent of v happened and v did not; it is kept with the product of the rates r_v
of the stages of which it is a negative. So of the rows that take a path c_1, c_2, ... down the chain, a share
r(c_1) r(c_2) ... is kept, and each row that is kept counts with the inverse of it (Horvitz and Thompson, 1952). So
every
sum over rows is on average what it was, and every loss converges to the probabilities before sampling: of the sampled
stage, of those before and behind it, and of others beside it that depend on it.

He et al. train on the kept rows as they are and shift the logit by log r_v afterwards. On a chain that is a line both
have one optimum; beside a sampled stage, or where its labels are not known, only weights have the right one.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

import espace
from espace.errors import did_you_mean
from espace.parts.samplers import label


class NegativeDownsample:
    """Keeps a share of the negatives of some stages; each counts for those that were left out."""

    def __init__(self, chain: espace.Chain, *, keep: dict[str, Annotated[float, Gt(0), Le(1)]]) -> None:
        """keep: `{stage: share of its negatives that is kept}`. Raises ValueError for a stage that has no negatives."""
        known = [outcome for t in chain.transitions for outcome in t.outcomes]
        if not keep:
            raise ValueError("keep: no stage is named. Write keep: {click: 0.1}, or sampler: none")
        for stage in keep:
            if stage in chain.otherwise:
                raise ValueError(f"keep: '{stage}' is what else happens. Name the outcomes that it is not")
            if stage not in known:
                raise ValueError(f"keep: '{stage}' is no stage that can fail to happen.{did_you_mean(stage, known)}")
        self.chain = chain
        self.keep = dict(keep)
        self.effect = "; ".join(f"negatives of {stage} are kept with rate {rate:g}" for stage, rate in keep.items())

    def rates(self) -> dict[str, list[float]]:
        """How often rows are used that take each class of a transition."""
        return {
            t.name: [math.prod(self.keep[o] for o in t.outcomes if o in self.keep and o != c) for c in t.classes]
            for t in self.chain.transitions
            if any(o in self.keep for o in t.outcomes)
        }

    def __call__(
        self, labels: NDArray[np.int8], weights: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Positions (n,) and weights (n,) of the rows that are kept; a row of which a label that decides it is not
        known is."""
        chances = np.ones(len(labels))
        for t in self.chain.transitions:
            outcomes = np.stack([label(self.chain, labels, o) for o in t.outcomes])  # (outcomes, rows)
            decided = (label(self.chain, labels, t.parent) == 1) & ((outcomes == 1).any(0) | (outcomes == 0).all(0))
            for outcome, found in zip(t.outcomes, outcomes, strict=True):
                chances[decided & (found == 0)] *= self.keep.get(outcome, 1.0)
        rows = np.flatnonzero(random.random(len(labels)) < chances)
        return rows, weights[rows]


@espace.hookimpl
def register_samplers(register: espace.Register[espace.Sampler]) -> None:
    """Bring `negative_downsample`."""
    register("negative_downsample", NegativeDownsample)
