"""What holds for towers, sharing and links alike: they are trained, saved, and run on any rows beside other modules."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from espace.model.features import Features, FeatureSpec
from espace.testing.features import as_float, example_features, example_spec, rows_of, tensors_of
from espace.testing.law import law

_ADDED = "auxiliary_loss"


class ModuleLaws:
    """The laws; each kind says how to build one and what comes out of it."""

    options: ClassVar[Mapping[str, object]] = {}
    spec: FeatureSpec = example_spec()

    def setup_method(self) -> None:
        """Every test has a spec of its own, of which its modules may ask for tables."""
        self.spec = replace(type(self).spec)

    def build(self, spec: FeatureSpec | None = None, seed: int = 1) -> nn.Module:
        """A new one in float64, from a fixed seed."""
        raise NotImplementedError

    def outputs(self, module: nn.Module, features: Features) -> Tensor:
        """All that comes out, side by side: (rows, any width)."""
        raise NotImplementedError

    def loss(self, module: nn.Module, features: Features) -> Tensor:
        """Something that depends on all that comes out, and on what the module adds to the loss."""
        out = self.outputs(module, features)
        target = torch.randn(out.shape, generator=torch.Generator().manual_seed(4), dtype=out.dtype)
        added: list[Tensor] = [getattr(m, _ADDED) for m in module.modules() if hasattr(type(m), _ADDED)]
        return torch.stack([(out - target).square().sum(), *added]).sum()

    def test_every_parameter_learns(self) -> None:
        module = self.build()
        loss = self.loss(module, example_features(self.spec, 64))
        if loss.requires_grad:
            torch.autograd.backward(loss)
        dead = [n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not dead, f"every parameter gets a gradient; these do not: {', '.join(dead)}"

    def test_rows_do_not_see_each_other(self) -> None:
        module = self.build().eval()
        features = example_features(self.spec)
        order = torch.tensor([3, 1])
        with law("in eval mode any rows will do, however many"):
            alone = self.outputs(module, rows_of(features, order))
        same = torch.allclose(alone, self.outputs(module, features)[order])
        assert same, "in eval mode what comes out for a row depends on that row only"

    def test_trains_on_one_row(self) -> None:
        module = self.build().train()
        told = "the last batch of an epoch may have one row"
        with law(told):
            loss = self.loss(module, rows_of(example_features(self.spec), torch.tensor([1])))
        assert torch.isfinite(loss), told

    def test_is_deterministic_in_eval_mode(self) -> None:
        module = self.build().eval()
        features = example_features(self.spec)
        same = torch.equal(self.outputs(module, features), self.outputs(module, features))
        assert same, "in eval mode the same input gives the same bits"

    def test_saves_and_loads_to_the_same_bits(self) -> None:
        specs = replace(self.spec), replace(self.spec)
        module, other = self.build(specs[0], seed=1), self.build(specs[1], seed=2)
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        with law("what one saves another one of the same options loads"):
            other.load_state_dict(torch.load(file, weights_only=True))
        both = [self.outputs(m.eval(), example_features(s)) for m, s in zip((module, other), specs, strict=True)]
        assert torch.equal(*both), "all that an output depends on is a parameter or a buffer, so that it is saved"

    def test_two_share_no_parameter(self) -> None:
        first, second = self.build(), self.build()
        assert first is not second, "the factory gives a new one each time"
        shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
        assert not shared, "two of one class share no parameter"

    def test_leaves_what_it_is_given_as_it_is(self) -> None:
        module = self.build()
        features = example_features(self.spec)
        before = [tensor.clone() for tensor in tensors_of(features)]
        self.outputs(module, features)
        same = all(torch.equal(a, b) for a, b in zip(before, tensors_of(features), strict=True))
        assert same, "its input is not changed in place, since others read it too"

    def test_half_precision_changes_little(self) -> None:
        module, features = self.build().float().eval(), as_float(example_features(self.spec))
        with law("it runs under bf16 autocast"), torch.autocast("cpu", dtype=torch.bfloat16):
            half = self.outputs(module, features).float()
        full = self.outputs(module, features)
        close = (half - full).norm() <= 0.05 * full.norm() + 1e-3
        assert close, "under bf16 autocast the output stays within 5 % of what it is in float32"
