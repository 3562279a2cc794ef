"""Wide & Deep (Cheng et al., DLRS 2016, arXiv 1606.07792): a linear model and a deep network, trained together.

    phi_k(x) = product over i of x_i^{c_ki}, c_ki in {0, 1}                     (1)
    a^{(l+1)} = f(W^{(l)} a^{(l)} + b^{(l)})                                    (2)
    P(Y = 1 | x) = sigmoid(w_wide [x, phi(x)] + w_deep a^{(l_f)} + b)           (3)

The wide part is `espace.FirstOrder`. The crosses phi(x) are columns that the user makes, such as a column that joins the values
of two others and is read as `{type: hash, buckets: 100_000, dim: 1}`. w_deep, b and the sum are the head's: it begins with a
weight of 1 on the wide part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import espace


class WideDeep(nn.Module):
    """A linear model beside a deep network on the embedding: [wide, a^{(l_f)}].

    The defaults are the paper's (section 4.2, figure 4): three layers of 1024, 512 and 256, ReLU. The paper trains the wide part
    with another optimiser than the deep one; here both have the experiment's. shared_weights: all towers of this type have the
    same wide weights of ids, instead of each its own.
    """

    logits = 1

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        hidden_units: list[espace.Count] = [1024, 512, 256],  # noqa: B006, it is read only
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.0,
        norm: espace.Norm = "none",
        shared_weights: bool = False,
    ) -> None:
        super().__init__()
        self.wide = espace.FirstOrder(spec, "first order" if shared_weights else None)
        self.deep = espace.dense(spec.width, hidden_units, activation=activation, dropout=dropout, norm=norm)
        self.out_features = 1 + (hidden_units or [spec.width])[-1]

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, 1 + the last of hidden_units)."""
        return torch.cat([self.wide(features), self.deep(features.flat())], dim=1)
