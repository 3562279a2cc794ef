"""Laws of weightings."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from espace.testing.law import law

_TERMS = {"click": 0.3, "conversion": 0.7, "refund": 0.1}
_WEIGHTS = {"click": 1.0, "conversion": 0.5, "refund": 2.0}
_CALLS = 20


class WeightingTests:
    """Laws of a weighting. Set `weighting` and `options`."""

    weighting: ClassVar[Callable[..., nn.Module]]
    options: ClassVar[Mapping[str, object]] = {}

    def build(self) -> nn.Module:
        """The weighting of three terms."""
        torch.manual_seed(1)
        return type(self).weighting(dict(_WEIGHTS), **self.options)

    def test_makes_one_finite_number_of_the_terms(self) -> None:
        loss = self.build()(_terms())
        assert isinstance(loss, Tensor), "the loss is a tensor"
        assert loss.shape == (), f"the loss is one number, of shape (), not {tuple(loss.shape)}"
        assert torch.isfinite(loss), "the loss is finite"

    def test_every_term_is_learnt(self) -> None:
        weighting, terms = self.build(), _terms()
        total = torch.stack([weighting(terms) for _ in range(_CALLS)]).sum()
        grads = torch.autograd.grad(total, list(terms.values()), allow_unused=True)
        reached = all(g is not None for g in grads)
        assert reached, "every term gets a gradient in every batch, if only zeros, so that every tower gets one"
        rises = all(g > 0 for g in grads if g is not None)
        assert rises, "the loss rises with every term, so that every term is made smaller"

    def test_every_parameter_learns(self) -> None:
        weighting = self.build()
        loss = weighting(_terms())
        if loss.requires_grad:
            torch.autograd.backward(loss)
        dead = [n for n, p in weighting.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not dead, f"every parameter gets a gradient; these do not: {', '.join(dead)}"

    def test_terms_go_by_name_and_not_by_place(self) -> None:
        terms = _terms()
        turned = {name: terms[name] for name in reversed(terms)}
        same = torch.allclose(_seeded(self.build(), terms), _seeded(self.build(), turned))
        assert same, "a term has its weight by its name, in whatever order the terms come"

    def test_a_term_without_rows_does_no_harm(self) -> None:
        terms = _terms(dict.fromkeys(_TERMS, 0.0))
        loss = self.build()(terms)
        told = "a term without rows in the batch is 0; the loss and its gradients stay finite"
        assert torch.isfinite(loss), told
        grads = torch.autograd.grad(loss, list(terms.values()), allow_unused=True)
        assert all(torch.isfinite(g) for g in grads if g is not None), told

    def test_terms_may_be_float64(self) -> None:
        with law("terms may be float64, which they are in validation"):
            loss = self.build()(_terms(dtype=torch.float64))
        assert torch.isfinite(loss), "the loss is finite"

    def test_leaves_the_terms_as_they_are(self) -> None:
        terms = {name: value.detach() for name, value in _terms().items()}
        before = {name: value.clone() for name, value in terms.items()}
        self.build()(terms)
        assert terms == before, "the terms are not changed in place, since they are also told"

    def test_a_call_without_gradients_changes_nothing(self) -> None:
        weighting = self.build()
        weighting(_terms())
        twin = copy.deepcopy(weighting)
        with torch.no_grad():
            for factor in (2.0, 0.5):
                weighting(_terms({name: factor * value for name, value in _TERMS.items()}))
        same = torch.equal(_seeded(weighting, _terms()), _seeded(twin, _terms()))
        assert same, "the loss is also told, without gradients: such a call leaves no trace"

    def test_saves_and_loads_to_the_same_bits(self) -> None:
        weighting, other = self.build(), self.build()
        for factor in (2.0, 0.5):
            weighting(_terms({name: factor * value for name, value in _TERMS.items()}))
        file = io.BytesIO()
        torch.save(weighting.state_dict(), file)
        file.seek(0)
        with law("what one saves another one of the same options loads"):
            other.load_state_dict(torch.load(file, weights_only=True))
        same = torch.equal(_seeded(weighting, _terms()), _seeded(other, _terms()))
        assert same, "what it remembers of earlier batches is in parameters or buffers, so that it is saved"


def _terms(values: Mapping[str, float] = _TERMS, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in values.items()}


def _seeded(weighting: nn.Module, terms: Mapping[str, Tensor]) -> Tensor:
    torch.manual_seed(5)
    loss: Tensor = weighting(terms)
    return loss.detach()
