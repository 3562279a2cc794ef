"""Nothing is shared after the embedding: every transition's tower sees the same features (ESMM, SIGIR 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import espace


class Separate(nn.Module):
    """Hands the features on as they are. `specs` tells each transition's tower what it will see."""

    def __init__(self, spec: espace.FeatureSpec, transitions: Sequence[str]) -> None:
        super().__init__()
        self.specs = dict.fromkeys(transitions, spec)

    def forward(self, features: espace.Features) -> Mapping[str, espace.Features]:
        """The same features for every transition."""
        return dict.fromkeys(self.specs, features)


@espace.hookimpl
def register_sharing(register: espace.Register[espace.Sharing]) -> None:
    """Bring `separate`."""
    register("separate", Separate)
