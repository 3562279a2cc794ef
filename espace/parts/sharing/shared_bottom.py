"""Shared bottom (Caruana, Machine Learning 1997; so called by Ma et al., KDD 2018): one expert for all transitions.

    f^k = f(x)

for every transition k, and a tower of each behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import espace


class SharedBottom(nn.Module):
    """One expert, whose vector every transition's tower sees."""

    def __init__(
        self,
        spec: espace.FeatureSpec,
        transitions: Sequence[str],
        expert: espace.Expert,
    ) -> None:
        super().__init__()
        self.expert = expert(spec)
        self.specs = dict.fromkeys(transitions, espace.FeatureSpec.of_vector(self.expert.out_features))

    def forward(self, features: espace.Features) -> Mapping[str, espace.Features]:
        """The expert's vector, (batch, width), for every transition."""
        return dict.fromkeys(self.specs, espace.Features.of_vector(self.expert(features)))


@espace.hookimpl
def register_sharing(register: espace.Register[espace.Sharing]) -> None:
    """Bring `shared_bottom`."""
    register("shared_bottom", SharedBottom)
