"""Multi-layer perceptron on the flat vector, the tower of ESMM (Ma et al., SIGIR 2018, section 3.1)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Lt
from torch import Tensor, nn

import espace

_ACTIVATIONS = {"relu": nn.ReLU, "prelu": nn.PReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """Linear, norm, activation, dropout for each of `hidden_units`. The paper's towers are 360-200-80 with ReLU."""

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        hidden_units: list[int] = [360, 200, 80],  # noqa: B006, it is read only
        activation: Literal["relu", "prelu", "gelu", "silu", "tanh"] = "relu",
        dropout: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0,
        norm: Literal["none", "batch", "layer"] = "none",
    ) -> None:
        super().__init__()
        widths = [spec.width, *hidden_units]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(nn.Linear(before, after))
            if norm != "none":
                layers.append(_NORMS[norm](after))
            layers.append(_ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, spec.width) to (batch, out_features)."""
        out: Tensor = self.layers(features.flat())
        return out


@espace.hookimpl
def register_towers(register: espace.Register) -> None:
    """Bring `mlp`."""
    register("mlp", MLP)
