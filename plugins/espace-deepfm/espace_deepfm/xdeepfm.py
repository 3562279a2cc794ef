"""xDeepFM (Lian et al., KDD 2018, arXiv 1803.05170): a compressed interaction network (CIN), a linear part and a DNN.

    X^k_h = sum over i, j of W^{k,h}_ij (X^{k-1}_i o X^0_j)       (6), o: element by element, no activation
    p^k_i = sum over the width of X^k_i
    p+ = [p^1, ..., p^T]
    y = sigmoid(w_linear a + w_dnn x_dnn + w_cin p+ + b)

X^0 is the matrix of the fields' vectors. The three weights and the sum are the head's: it begins with a weight of 1 on the
linear part, which is `espace.FirstOrder`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import espace


class CIN(nn.Module):
    """X^0 (batch, fields, width) to p+ (batch, sum of `units`). A layer holds batch x units x fields x width floats."""

    def __init__(self, fields: int, units: list[int]) -> None:
        super().__init__()
        before = [fields, *units]
        self.weights = nn.ParameterList(
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(after, b * fields)))
            for b, after in zip(before, units, strict=False)
        )

    def forward(self, x0: Tensor) -> Tensor:
        """(batch, fields, width) to (batch, sum of units)."""
        x, pooled = x0, []
        for weight in self.weights:
            x = weight @ (x[:, :, None] * x0[:, None]).flatten(1, 2)  # (batch, units, width)
            pooled.append(x.sum(2))
        return torch.cat(pooled, dim=1)


class XDeepFM(nn.Module):
    """A linear part, a compressed interaction network and a deep network on the same embedding: [linear, p+, x_dnn].

    The defaults are the paper's for Criteo (section 4.1 and its table of best settings): a CIN of three layers of 200, two
    layers of 400, ReLU, dropout 0.5. shared_weights: all towers of this type have the same linear weights of ids.
    """

    logits = 1

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        cin_units: list[espace.Count] = [200, 200, 200],  # noqa: B006, it is read only
        hidden_units: list[espace.Count] = [400, 400],  # noqa: B006
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.5,
        norm: espace.Norm = "none",
        shared_weights: bool = False,
    ) -> None:
        super().__init__()
        if not cin_units:
            raise ValueError("cin_units is empty. Give at least one width, or use the tower 'deepfm'.")
        self.first_order = espace.FirstOrder(spec, "first order" if shared_weights else None)
        self.fields = espace.FieldMatrix(spec)
        self.cin = CIN(len(self.fields.fields), cin_units)
        self.deep = espace.dense(spec.width, hidden_units, activation=activation, dropout=dropout, norm=norm)
        self.out_features = 1 + sum(cin_units) + (hidden_units or [spec.width])[-1]

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, 1 + the sum of cin_units + the last of hidden_units)."""
        parts = [self.first_order(features), self.cin(self.fields(features)), self.deep(features.flat())]
        return torch.cat(parts, dim=1)
