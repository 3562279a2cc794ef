"""Multi-gate mixture of experts (Ma et al., KDD 2018).

    f^k = sum over i of softmax(W_k x)_i f_i(x)

f_1 .. f_n are experts that all transitions share. x, what the gate of transition k looks at, is the flat vector of the
features. With one expert it is the shared bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import espace


class MMoE(nn.Module):
    """Experts shared by all transitions, and a gate of each transition that mixes them."""

    def __init__(
        self,
        spec: espace.FeatureSpec,
        transitions: Sequence[str],
        expert: espace.Expert,
        *,
        experts: espace.Count = 4,
    ) -> None:
        super().__init__()
        made = [expert(spec) for _ in range(experts)]
        self.experts = nn.ModuleList(made)
        numbers = range(1, experts + 1)
        self.gates = espace.NamedModules(
            {name: espace.Gate(spec.width, [f"{name}/expert_{i}" for i in numbers]) for name in transitions}
        )
        self.specs = dict.fromkeys(transitions, espace.FeatureSpec.of_vector(made[0].out_features))

    def forward(self, features: espace.Features) -> Mapping[str, espace.Features]:
        """f^k, (batch, width), for every transition k."""
        vectors, x = [expert(features) for expert in self.experts], features.flat()
        return {name: espace.Features.of_vector(gate(x, vectors)) for name, gate in self.gates.items()}


@espace.hookimpl
def register_sharing(register: espace.Register[espace.Sharing]) -> None:
    """Bring `mmoe`."""
    register("mmoe", MMoE)
