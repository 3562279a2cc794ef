"""The entire-space objective of ESMM (Ma et al., SIGIR 2018, eq. 3), for any chain.

One binary cross-entropy per labelled stage v, on the marginal over every impression:

    L = sum_v w_v mean_D[ -y_v log P(v) - (1 - y_v) log P(not v) ]

Conditionals such as pCVR get no term of their own; they learn through the marginals they are factors of. Of a value
there is a likelihood besides, on the rows of its parent.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

import espace


class EntireSpace:
    """A term per labelled stage, judged on all impressions whose label of it is known, and divided by their number."""

    def __init__(self, chain: espace.Chain) -> None:
        self.chain = chain
        self._values = espace.ValueTerms(chain)
        self.terms = {
            stage: espace.Term(
                stages=(stage,),
                given=None,
                loss=f"-y log P({stage}) - (1 - y) log P(not {stage})",
                rows=f"all impressions, {stage} known",
                divisor="the same rows",
            )
            for stage in chain.labelled
        } | self._values.terms

    def __call__(self, p: espace.Probabilities, labels: espace.Labels) -> Mapping[str, tuple[Tensor, Tensor]]:
        """{stage: (loss of each row (batch,), for how many rows the row stands (batch,))}."""
        terms = {}
        for stage in self.chain.labelled:
            known = labels.known(stage)  # (batch,)
            log_likelihood = p.log_prob(stage).where(labels.of(stage) == 1, p.log_not_prob(stage))
            terms[stage] = (-log_likelihood * known, known)
        return terms | self._values(p, labels)


@espace.hookimpl
def register_objectives(register: espace.Register[espace.Objective]) -> None:
    """Bring `entire_space`."""
    register("entire_space", EntireSpace)
