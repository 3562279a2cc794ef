"""Laws of towers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from espace.model.features import Features, FeatureSpec
from espace.testing.features import example_features, extra_of, rows_of, with_extra
from espace.testing.law import law
from espace.testing.modules import ModuleLaws


class TowerTests(ModuleLaws):
    """Laws of a tower. Set `tower` to the class and `options` to what the YAML would say; `spec` to other features if
    the tower needs them."""

    tower: ClassVar[Callable[..., nn.Module]]

    def build(self, spec: FeatureSpec | None = None, seed: int = 1) -> nn.Module:
        """The tower in float64, from a fixed seed."""
        torch.manual_seed(seed)
        return type(self).tower(spec or self.spec, **self.options).double()

    def outputs(self, module: nn.Module, features: Features) -> Tensor:
        out: Tensor = module(features)
        return out

    def test_gives_one_vector_per_row(self) -> None:
        tower = self.build()
        width = getattr(tower, "out_features", None)
        assert isinstance(width, int), "a tower says how wide its output is: set self.out_features"
        out = tower(example_features(self.spec))
        assert out.shape == (6, width), f"a tower gives (batch, out_features) = (6, {width}), not {tuple(out.shape)}"
        assert torch.isfinite(out).all(), "a tower gives finite numbers, also for a row without any event"
        assert 0 <= getattr(tower, "logits", 0) <= width, "`logits` is a number of columns of the output"

    def test_gives_vectors_and_not_probabilities(self) -> None:
        tower = self.build()
        out = torch.cat([tower(example_features(self.spec, 64, seed)) for seed in range(4)])
        inside = ((out >= 0) & (out <= 1)).all() and out.std() > 0
        shares = inside and torch.allclose(out.sum(1), out.new_ones(len(out)))
        is_probability = shares or (out.shape[1] == 1 and inside)
        assert not is_probability, "a tower gives what a head turns into logits, not a probability"

    def test_what_stands_in_the_padding_is_invisible(self) -> None:
        tower = self.build().eval()
        features = example_features(self.spec)
        short = torch.tensor([1, 2])  # alone they are padded less than beside longer rows
        same = torch.allclose(tower(rows_of(features, short)), tower(features)[short])
        assert same, "padding changes no output: leave it out with the mask"

    def test_a_batch_without_any_event_works(self) -> None:
        tower, features = self.build(), example_features(self.spec, empty=True)
        with law("an empty history is allowed, in every row"):
            out, loss = tower.eval()(features), self.loss(tower.train(), features)
        assert torch.isfinite(out).all(), "an empty history gives finite numbers"
        assert torch.isfinite(loss), "an empty history gives finite numbers"
        torch.autograd.backward(loss)
        without = [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, (
            "every parameter gets a gradient in every batch, if only zeros, so that ranks do not wait for each other;"
            f" these do not: {', '.join(without)}"
        )

    def test_towers_beside_it_change_nothing(self) -> None:
        alone, beside = replace(self.spec), replace(self.spec)
        tower, features = self.build(alone), example_features(alone)
        beside.ask(2)
        twin = self.build(beside)
        beside.ask(1)
        extra, rows = extra_of(features), len(features.flat())
        first, last = (extra.new_ones(rows, len(alone.categorical), width) for width in (2, 1))
        more = with_extra(features, beside, torch.cat([first, extra, last], dim=2))
        told = "it reads the extra tables that it asked for, whatever other towers ask of the same spec"
        with law(told):
            same = torch.equal(tower.eval()(features), twin.eval()(more))
        assert same, told

    def test_works_as_an_expert(self) -> None:
        torch.manual_seed(3)
        experts = nn.ModuleList(self.build(seed=seed) for seed in (1, 2))
        features = example_features(self.spec, 64)
        gate = torch.randn(64, 2, dtype=torch.float64).softmax(1)  # (batch, experts)
        mixed = (gate[..., None] * torch.stack([e(features) for e in experts], dim=1)).sum(1)
        torch.autograd.backward(mixed.square().sum())
        dead = [n for n, p in experts.named_parameters() if p.requires_grad and p.grad is None]
        assert not dead, f"as one of several experts every parameter gets a gradient; these do not: {', '.join(dead)}"

    def test_what_it_adds_to_the_loss_is_one_number(self) -> None:
        tower = self.build().train()
        tower(example_features(self.spec))
        for module in tower.modules():
            if hasattr(module, "auxiliary_loss"):
                of_class, added = hasattr(type(module), "auxiliary_loss"), module.auxiliary_loss
                assert of_class, "auxiliary_loss is an attribute of the class, by which espace finds it"
                is_number = isinstance(added, Tensor) and added.shape == () and torch.isfinite(added)
                assert is_number, "in training, forward sets auxiliary_loss to one finite number, a tensor of shape ()"
