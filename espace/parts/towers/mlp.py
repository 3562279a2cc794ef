"""Multi-layer perceptron on the flat vector, the tower of ESMM (Ma et al., SIGIR 2018, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

import espace


class MLP(nn.Module):
    """Linear, norm, activation, dropout for each of `hidden_units`. The paper's towers are 360-200-80 with ReLU."""

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        hidden_units: list[espace.Count] = [360, 200, 80],  # noqa: B006, it is read only
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.0,
        norm: espace.Norm = "none",
    ) -> None:
        super().__init__()
        self.layers = espace.dense(spec.width, hidden_units, activation=activation, dropout=dropout, norm=norm)
        self.out_features = hidden_units[-1] if hidden_units else spec.width

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, spec.width) to (batch, out_features)."""
        out: Tensor = self.layers(features.flat())
        return out


@espace.hookimpl
def register_towers(register: espace.Register[espace.Tower]) -> None:
    """Bring `mlp`."""
    register("mlp", MLP)
