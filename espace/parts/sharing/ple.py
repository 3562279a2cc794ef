"""Progressive layered extraction (Tang et al., RecSys 2020): levels of customized gate control, one behind the other.

    f^{k,l} = sum over j of softmax(W_{k,l} f^{k,l-1})_j [own_{k,l} ; shared_l]_j
    f^{s,l} = sum over j of softmax(W_{s,l} f^{s,l-1})_j [own_{1,l} ; ... ; own_{K,l} ; shared_l]_j

f^{k,0} and f^{s,0} are the features, of which gates see the flat vector. At level l the experts of transition k read
f^{k,l-1}, the shared ones f^{s,l-1}. The gate of what is shared mixes all experts of its level; the last level has
none, since only the f^{k,L} go on. With one level it is cgc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import espace
from espace.parts.sharing.cgc import Extraction, Number, places_of


class PLE(nn.Module):
    """Levels of own and shared experts; from the second on they read what the gates of the level before gave.

    Args:
        levels: how many.
        own: experts of each transition at every level.
        shared: experts of all at every level.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        transitions: Sequence[str],
        expert: espace.Expert,
        *,
        levels: espace.Count = 2,
        own: Number = 1,
        shared: Number = 1,
    ) -> None:
        super().__init__()
        self.places = places_of(transitions, own, shared)
        self.levels = nn.ModuleList()
        for number in range(1, levels + 1):
            specs, last = dict.fromkeys(self.places, spec), number == levels
            level = Extraction(specs, expert, own=own, shared=shared, last=last, level=f"level_{number}/")
            self.levels.append(level)
            spec = espace.FeatureSpec.of_vector(level.out_features)
        self.specs = dict.fromkeys(transitions, spec)

    def forward(self, features: espace.Features) -> Mapping[str, espace.Features]:
        """f^{k,L}, (batch, width), for every transition k."""
        inputs = dict.fromkeys(self.places, features)
        for level in self.levels:
            inputs = {place: espace.Features.of_vector(vector) for place, vector in level(inputs).items()}
        return inputs


@espace.hookimpl
def register_sharing(register: espace.Register[espace.Sharing]) -> None:
    """Bring `ple`."""
    register("ple", PLE)
