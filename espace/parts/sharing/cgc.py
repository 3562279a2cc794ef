"""Customized gate control (Tang et al., RecSys 2020): experts of one transition beside experts of all.

    f^k = sum over j of softmax(W_k x)_j [own_k ; shared]_j

own_k are the experts of transition k, shared those of all; the gate of k sees no others. x is the flat vector of the
features. Without own experts it is the multi-gate mixture of experts; with one own expert each and none shared, every
transition is on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

from annotated_types import Ge
from torch import Tensor, nn

import espace

SHARED = "shared"  # stands beside the names of transitions, which all contain `_to_`
Number: TypeAlias = Annotated[int, Ge(0)]


def places_of(transitions: Sequence[str], own: int, shared: int) -> list[str]:
    """Whose experts there are: the transitions, and "shared" if any are. Raises ValueError where there is no expert."""
    if own + shared == 0:
        raise ValueError("own and shared are both 0, so that there is no expert. Set one of them to 1 or more.")
    return [*transitions, SHARED] if shared else [*transitions]


class Extraction(nn.Module):
    """One level: the experts of every place, and the gates that mix them.

    Args:
        specs: `{place: what its experts and its gate see}`.
        expert: builds one.
        own, shared: how many experts each transition has, and how many are shared.
        last: whether only the transitions' vectors are wanted. Else "shared" has a gate too, which mixes all experts.
        level: what stands before an expert's name where its mean weight is told.
    """

    def __init__(
        self,
        specs: Mapping[str, espace.FeatureSpec],
        expert: espace.Expert,
        *,
        own: int,
        shared: int,
        last: bool,
        level: str = "",
    ) -> None:
        super().__init__()
        counts = {place: shared if place == SHARED else own for place in specs}
        experts = {place: [expert(specs[place]) for _ in range(count)] for place, count in counts.items()}
        self.out_features: int = next(one for group in experts.values() for one in group).out_features
        self.experts = espace.NamedModules({place: nn.ModuleList(group) for place, group in experts.items()})
        self.seen = {place: [p for p in specs if p in (place, SHARED) or place == SHARED] for place in specs}
        self.gates = espace.NamedModules()
        for place in (p for p in specs if not (last and p == SHARED)):
            told = [f"{_called(p, place)}_{i}" for p in self.seen[place] for i in range(1, counts[p] + 1)]
            self.gates[place] = espace.Gate(specs[place].width, [f"{place}/{level}{name}" for name in told])

    def forward(self, inputs: Mapping[str, espace.Features]) -> dict[str, Tensor]:
        """`{place: features}` to `{place: (batch, out_features)}`."""
        groups = self.experts.items()
        vectors = {place: [expert(inputs[place]) for expert in group.children()] for place, group in groups}
        return {
            place: gate(inputs[place].flat(), [vector for p in self.seen[place] for vector in vectors[p]])
            for place, gate in self.gates.items()
        }


def _called(place: str, by: str) -> str:
    """What the experts of a place are called where the weights of a gate are told."""
    return "own" if place == by != SHARED else place


class CGC(nn.Module):
    """One level of own and shared experts, and a gate of each transition that mixes its own with the shared ones.

    Args:
        own: experts of each transition.
        shared: experts of all.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        transitions: Sequence[str],
        expert: espace.Expert,
        *,
        own: Number = 1,
        shared: Number = 1,
    ) -> None:
        super().__init__()
        places = places_of(transitions, own, shared)
        self.level = Extraction(dict.fromkeys(places, spec), expert, own=own, shared=shared, last=True)
        self.places = places
        self.specs = dict.fromkeys(transitions, espace.FeatureSpec.of_vector(self.level.out_features))

    def forward(self, features: espace.Features) -> Mapping[str, espace.Features]:
        """f^k, (batch, width), for every transition k."""
        vectors = self.level(dict.fromkeys(self.places, features))
        return {name: espace.Features.of_vector(vector) for name, vector in vectors.items()}


@espace.hookimpl
def register_sharing(register: espace.Register[espace.Sharing]) -> None:
    """Bring `cgc`."""
    register("cgc", CGC)
