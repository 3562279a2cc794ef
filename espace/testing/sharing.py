"""Laws of sharing modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from espace.model.features import Features, FeatureSpec
from espace.registry.signature import accepts
from espace.testing.features import example_features
from espace.testing.law import law
from espace.testing.modules import ModuleLaws


class SharingTests(ModuleLaws):
    """Laws of a sharing module. Set `sharing` and `options`. The experts that it gets are one linear layer."""

    sharing: ClassVar[Callable[..., nn.Module]]

    def build(self, spec: FeatureSpec | None = None, seed: int = 1) -> nn.Module:
        """The module for two transitions, in float64."""
        torch.manual_seed(seed)
        return self._for(["a", "b"], spec or self.spec)

    def outputs(self, module: nn.Module, features: Features) -> Tensor:
        return torch.cat([f.flat() for f in module(features).values()], dim=1)

    def _for(self, transitions: Sequence[str], spec: FeatureSpec) -> nn.Module:
        sharing = type(self).sharing
        expert = [_Linear] if accepts(sharing, 3) else []
        return sharing(spec, transitions, *expert, **self.options).double()

    def test_every_transition_gets_features_of_the_promised_layout(self) -> None:
        for names in (["a"], ["a", "b", "c"]):
            with law("any number of transitions can share"):
                module = self._for(names, self.spec)
                out = module(example_features(self.spec))
            specs: Mapping[str, FeatureSpec] = getattr(module, "specs", {})
            assert set(out) == set(names) == set(specs), "there are features and a layout for every transition"
            for name, features in out.items():
                shape = tuple(features.flat().shape)
                assert shape == (6, specs[name].width), f"the features are as wide as specs says, not {shape}"


class _Linear(nn.Module):
    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.width, 3)
        self.out_features = 3

    def forward(self, features: Features) -> Tensor:
        out: Tensor = self.layer(features.flat())
        return out
