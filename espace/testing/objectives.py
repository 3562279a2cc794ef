"""Laws of objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from espace.chain.chain import Chain
from espace.chain.labels import Labels
from espace.chain.probability import Probabilities
from espace.contracts import Objective
from espace.parts.stages.lognormal import LogNormal
from espace.testing.chains import CHAINS, random_labels

_ROWS = 64


class _Case(NamedTuple):
    chain: Chain
    p: Probabilities
    labels: Labels
    logits: dict[str, Tensor]


class ObjectiveTests:
    """Laws of an objective. Set `objective` and `options`."""

    objective: ClassVar[Callable[..., Objective]]
    options: ClassVar[Mapping[str, object]] = {}

    def build(self, chain: Chain) -> Objective:
        """The objective of a chain."""
        return type(self).objective(chain, **self.options)

    def test_terms_are_described_and_given_per_row(self) -> None:
        for case in _cases():
            objective = self.build(case.chain)
            found = objective(case.p, case.labels)
            assert set(found) == set(objective.terms), "every term is described in .terms, and nothing else is"
            named = {s for term in objective.terms.values() for s in (*term.stages, term.given or case.chain.root)}
            values = {v.amount for v in case.chain.values}
            assert named <= {*case.chain.stages, *values}, "a term names stages and values of the chain"
            assert values <= named, "there is a term for every value: add espace.ValueTerms(chain)"
            per_row = all(v.shape == r.shape == (_ROWS,) for v, r in found.values())
            assert per_row, "a term is a value and a count of each row, both (batch,)"

    def test_losses_are_finite_whatever_is_predicted(self) -> None:
        for case in _cases(sureness=100.0):
            for value, rows in self.build(case.chain)(case.p, case.labels).values():
                assert torch.isfinite(value).all(), "a loss is finite: stay in log space, where both tails are exact"
                assert torch.isfinite(rows).all(), "a row counts a finite number of times"
                assert (rows >= 0).all(), "a row does not count less than zero times"

    def test_what_agrees_with_the_labels_loses_less(self) -> None:
        for chain in map(Chain.parse, CHAINS):
            torch.manual_seed(2)
            labels, objective = random_labels(chain, _ROWS), self.build(chain)
            agreeing, opposed = (_total(objective(_leaning(chain, labels, by), labels)) for by in (4.0, -4.0))
            assert agreeing < opposed, "predictions that agree with the labels lose less than their opposite"

    def test_every_logit_gets_a_finite_gradient_even_without_clicks(self) -> None:
        for case in _cases():
            for labels in (case.labels, Labels(case.chain, torch.zeros_like(case.labels.values))):
                total = _total(self.build(case.chain)(case.p, labels))
                grads = torch.autograd.grad(total, list(case.logits.values()), allow_unused=True, retain_graph=True)
                reached = all(g is not None for g in grads)
                assert reached, "mask by multiplication, so that every tower gets a gradient in every batch"
                assert all(torch.isfinite(g).all() for g in grads if g is not None), "gradients are finite"

    def test_unknown_labels_are_left_out_where_they_are_needed(self) -> None:
        for case in _cases():
            unknown = Labels(case.chain, torch.full_like(case.labels.values, -1))
            for value, _ in self.build(case.chain)(case.p, unknown).values():
                assert not value.any(), "a row whose labels are not known adds nothing"


def _cases(sureness: float = 1.0) -> Iterator[_Case]:
    """Every example chain with random logits of that spread and labels that follow it."""
    for chain in map(Chain.parse, CHAINS):
        torch.manual_seed(2)
        kinds = _kinds(chain)
        shapes = {t.name: (_ROWS, len(t.outcomes)) for t in chain.transitions}
        shapes |= {name: (_ROWS, kind.logits) for name, kind in kinds.items()}
        logits = {n: (sureness * torch.randn(s, dtype=torch.float64)).requires_grad_() for n, s in shapes.items()}
        yield _Case(chain, Probabilities(chain, logits, kinds), random_labels(chain, _ROWS), logits)


def _kinds(chain: Chain) -> dict[str, LogNormal]:
    return {v.name: LogNormal() for v in chain.values}


def _leaning(chain: Chain, labels: Labels, by: float) -> Probabilities:
    """Logits of `by` for what happened and of -`by` for what did not; amounts are expected, or one divided by them."""
    happened = {t.name: torch.stack([labels.happened(o) for o in t.outcomes], dim=1) for t in chain.transitions}
    logits = {name: by * (2 * h.double() - 1) for name, h in happened.items()}
    for v in chain.values:
        mu = labels.amount(v.amount, v.parent).double().log().nan_to_num() * (1 if by > 0 else -1)
        logits[v.name] = torch.stack([mu, torch.zeros_like(mu)], dim=1)
    return Probabilities(chain, logits, _kinds(chain))


def _total(terms: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """The sum of the means of the terms."""
    return torch.stack([value.sum() / rows.sum().clamp(min=1) for value, rows in terms.values()]).sum()
