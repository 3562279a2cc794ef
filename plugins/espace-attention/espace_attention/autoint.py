"""AutoInt (Song et al., CIKM 2019, arXiv 1810.11921): every field attends to all fields, layer by layer.

    alpha^h_mk = softmax over k of <W^h_query e_m, W^h_key e_k>   (5)
    c^h_m = sum over k of alpha^h_mk W^h_value e_k                (6)
    c_m = [c^1_m, ..., c^H_m]                                     (7)
    e_m <- ReLU(c_m + W_res e_m)                                  (8)

The logit, w [e_1, ..., e_M] + b, is the head's. As in the paper the inner product is not divided by a root of the width, and
the projections have no bias; the authors' code divides it, puts a ReLU on each projection and a layer norm after (8).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import espace


class InteractingLayer(nn.Module):
    """Equations 5 to 8: (batch, fields, in_features) to (batch, fields, heads * width)."""

    def __init__(self, in_features: int, heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.maps = nn.Linear(in_features, 4 * heads * width, bias=False)  # query, key, value and residual, one by one

    def forward(self, e: Tensor) -> Tensor:
        """(batch, fields, in_features) to (batch, fields, heads * width)."""
        *projected, residual = self.maps(e).chunk(4, dim=2)  # (batch, fields, heads * width) each
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in projected)
        dropout = self.dropout if self.training else 0.0
        combined = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0)
        return torch.relu(combined.transpose(1, 2).flatten(2) + residual)


class AutoInt(nn.Module):
    """Interacting layers on the fields' vectors, all of them side by side: [e_1, ..., e_M].

    The defaults are the paper's: three layers, two heads of 32 each. With hidden_units it is AutoInt+, the joint
    model of the paper: a deep network on the same embedding, whose output is appended. dropout: of the attention weights and of
    the deep network; norm: of the deep network.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        layers: espace.Count = 3,
        heads: espace.Count = 2,
        width: espace.Count = 32,
        hidden_units: list[espace.Count] = [],  # noqa: B006, it is read only
        dropout: espace.Dropout = 0.0,
        norm: espace.Norm = "none",
    ) -> None:
        super().__init__()
        self.fields = espace.FieldMatrix(spec)
        before = [self.fields.width, *[heads * width] * (layers - 1)]
        self.layers = nn.Sequential(*[InteractingLayer(b, heads, width, dropout) for b in before])
        self.deep = espace.dense(spec.width, hidden_units, dropout=dropout, norm=norm) if hidden_units else None
        self.out_features = len(self.fields.fields) * heads * width + sum(hidden_units[-1:])

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, fields * heads * width, and the last of hidden_units)."""
        out: Tensor = self.layers(self.fields(features)).flatten(1)
        return out if self.deep is None else torch.cat([out, self.deep(features.flat())], dim=1)
