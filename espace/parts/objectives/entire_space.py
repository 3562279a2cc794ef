"""The entire-space objective of ESMM (Ma et al., SIGIR 2018, eq. 3), for any chain.

One binary cross-entropy per labelled stage v, on the marginal over every impression:

    L = sum_v w_v mean_D[ -y_v log P(v) - (1 - y_v) log P(not v) ]

Conditionals such as pCVR get no term of their own; they learn through the marginals they are factors of. Of a value
there is a likelihood besides, on the rows of its parent. With u the parent of v, of several their sum, dL/dP(v | u) is
P(u) times as small as that of the loss on rows with u, and times (1 - P(v | u)) / (1 - P(v)). `divide_by: parents`
takes back the first, on average over the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

import espace


class EntireSpace:
    """A term per labelled stage, judged on all impressions whose label of it is known, and divided by their number.

    Args:
        detach_parents: in the term of a stage the probability of its parents is a constant, so that they do not learn
            from its label. The optimum is the same. What later labels say about earlier stages is given up.
        divide_by: "impressions", the rows that are judged, or "parents", how many of them are expected to have a
            parent of the stage, sum_i P(parent) as a constant, so that terms of rare parents do not weigh less.
    """

    def __init__(
        self,
        chain: espace.Chain,
        *,
        detach_parents: bool = False,
        divide_by: Literal["impressions", "parents"] = "impressions",
    ) -> None:
        self.chain = chain
        self.detach_parents, self.divide_by = detach_parents, divide_by
        self._values = espace.ValueTerms(chain)
        self.terms = {stage: self._describe(stage) for stage in chain.labelled} | self._values.terms

    def _describe(self, stage: str) -> espace.Term:
        parents = self.chain.parents(stage)
        expected = self.divide_by == "parents" and parents != (self.chain.root,)
        return espace.Term(
            stages=(stage,),
            given=None,
            loss=f"-y log P({stage}) - (1 - y) log P(not {stage})",
            rows=f"all impressions, {stage} known",
            divisor=f"the same rows, times P({' or '.join(parents)})" if expected else "the same rows",
        )

    def __call__(self, p: espace.Probabilities, labels: espace.Labels) -> Mapping[str, tuple[Tensor, Tensor]]:
        """{stage: (loss of each row (batch,), for how many rows the row stands (batch,))}."""
        terms = {}
        for stage in self.chain.labelled:
            known = labels.known(stage)  # (batch,)
            q = p.alone(stage) if self.detach_parents else p
            log_likelihood = q.log_prob(stage).where(labels.of(stage) == 1, q.log_not_prob(stage))
            terms[stage] = (-log_likelihood * known, known * self._parents(p, stage))
        return terms | self._values(p, labels)

    def _parents(self, p: espace.Probabilities, stage: str) -> Tensor | float:
        """What a row counts in the divisor, (batch,): P(a parent of the stage), or 1."""
        if self.divide_by == "impressions":
            return 1.0
        return torch.stack([p.prob(parent).detach() for parent in self.chain.parents(stage)]).sum(0)


@espace.hookimpl
def register_objectives(register: espace.Register[espace.Objective]) -> None:
    """Bring `entire_space`."""
    register("entire_space", EntireSpace)
