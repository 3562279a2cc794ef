"""The parent-space objective: every transition is judged on the rows in which its parent stage happened.

    L = sum_t w_t sum_{rows with parent} -log P(outcome | parent) / divisor

With `divide_by: rows` each term is a mean over its own rows: the usual separate training of pCTR on impressions and
pCVR on clicks, the biased baseline BASE of ESMM (SIGIR 2018, section 3.2). With `divide_by: impressions` the sum of the
terms is the negative log-likelihood of the whole path, per impression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

import espace


class ParentSpace:
    """A cross-entropy per transition, over its outcomes and "else or nothing", where the parent happened and the
    outcome is known."""

    def __init__(self, chain: espace.Chain, *, divide_by: Literal["rows", "impressions"] = "rows") -> None:
        self.chain = chain
        self.divide_by = divide_by
        self._names = {t: _term_name(chain, t) for t in chain.transitions}
        self._values = espace.ValueTerms(chain, divide_by)
        self.terms = {self._names[t]: self._describe(t) for t in chain.transitions} | self._values.terms

    def _describe(self, transition: espace.Transition) -> espace.Term:
        parent, outcomes = transition.parent, " | ".join(transition.outcomes)
        start = parent == self.chain.root
        return espace.Term(
            stages=transition.outcomes,
            given=None if start else parent,
            loss=f"-log P(outcome given {parent}), outcome one of {outcomes} | {transition.otherwise or 'nothing'}",
            rows=f"{'all impressions' if start else f'rows with {parent} = 1'}, {outcomes} known",
            divisor="the same rows" if self.divide_by == "rows" else "all impressions",
        )

    def __call__(self, p: espace.Probabilities, labels: espace.Labels) -> Mapping[str, tuple[Tensor, Tensor]]:
        """{term: (loss of each row (batch,), how much the row counts in the divisor (batch,))}."""
        terms = {name: self._term(transition, p, labels) for transition, name in self._names.items()}
        return terms | self._values(p, labels)

    def _term(
        self, transition: espace.Transition, p: espace.Probabilities, labels: espace.Labels
    ) -> tuple[Tensor, Tensor]:
        added = labels.added(transition.outcomes[0], transition.parent)
        rows = labels.known_class(transition) + added
        loss = -self._log_likelihood(transition, p, labels) * rows
        return loss, rows if self.divide_by == "rows" else torch.ones_like(rows)

    def _log_likelihood(self, transition: espace.Transition, p: espace.Probabilities, labels: espace.Labels) -> Tensor:
        """log P of the classes that the labels leave possible, given the parent: (batch,)."""
        found = [p.log_prob(outcome, given=transition.parent) for outcome in transition.outcomes]
        happened = torch.stack([labels.of(o) == 1 for o in transition.outcomes])  # (outcomes, batch)
        if len(found) == 1:
            return found[0].where(happened[0], p.log_nothing(transition))
        unknown = torch.stack([labels.of(o) == -1 for o in transition.outcomes])
        taken = happened.any(0)
        possible = torch.cat([happened | (unknown & ~taken), ~taken[None]])  # (outcomes + 1, batch)
        classes = torch.stack([*found, p.log_nothing(transition)])
        return classes.masked_fill(~possible, -torch.inf).logsumexp(0)


def _term_name(chain: espace.Chain, transition: espace.Transition) -> str:
    outcomes = "_or_".join(transition.outcomes)
    return outcomes if transition.parent == chain.root else f"{outcomes}_given_{transition.parent}"


@espace.hookimpl
def register_objectives(register: espace.Register[espace.Objective]) -> None:
    """Bring `parent_space`."""
    register("parent_space", ParentSpace)
