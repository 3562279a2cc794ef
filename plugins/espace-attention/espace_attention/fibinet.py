"""FiBiNET (Huang et al., RecSys 2019, arXiv 1905.09433): fields weighed by a squeeze-and-excitation network, then crossed.

Section 3.2, SENET, of the fields' vectors e_1 .. e_f with k numbers each:

    squeeze      z_i = mean of the k numbers of e_i
    excitation   a = ReLU(W_2 ReLU(W_1 z)), W_1 taking f numbers to f / r, W_2 back
    re-weight    v_i = a_i e_i

Section 3.3, the interaction of each pair i < j, o being element by element:

    field_all           p_ij = (v_i W) o v_j
    field_each          p_ij = (v_i W_i) o v_j
    field_interaction   p_ij = (v_i W_ij) o v_j
    Hadamard            p_ij = v_i o v_j

Sections 3.4 to 3.6: c = [p of all pairs of e, q of all pairs of v], a deep network on c, and

    y = sigmoid(w_0 + sum of w_i x_i + y_d)

y_d, linear in the deep network's output, w_0 and the sum are the head's: it begins with a weight of 1 on the linear part,
which is `espace.FirstOrder`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

import espace


class SENET(nn.Module):
    """A weight for each field, learnt from all of them: (batch, fields, width) to the same."""

    def __init__(self, fields: int, reduction_ratio: int) -> None:
        super().__init__()
        squeezed = max(1, fields // reduction_ratio)
        self.down = nn.Linear(fields, squeezed, bias=False)
        self.up = nn.Linear(squeezed, fields, bias=False)

    def forward(self, e: Tensor) -> Tensor:
        """(batch, fields, width) to the same."""
        weights = torch.relu(self.up(torch.relu(self.down(e.mean(2)))))  # (batch, fields)
        return e * weights[:, :, None]


class Pairs(nn.Module):
    """The element-wise products of all pairs i < j: (batch, fields, width) to (batch, pairs, width)."""

    first: Tensor
    second: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(fields, fields, offset=1)  # (pairs,) each
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        """(batch, fields, width) to (batch, pairs, width)."""
        return v.index_select(1, self.first) * v.index_select(1, self.second)


class BilinearPairs(Pairs):
    """The same with a matrix between the two: one for all pairs, for each first field, or for each pair."""

    def __init__(self, fields: int, width: int, kind: str) -> None:
        super().__init__(fields)
        self.each_pair = kind == "field_interaction"
        matrices = {"field_all": 1, "field_each": fields - 1, "field_interaction": len(self.first)}[kind]
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(matrices, width, width).uniform_(-bound, bound))

    def forward(self, v: Tensor) -> Tensor:
        """(batch, fields, width) to (batch, pairs, width)."""
        left = v.index_select(1, self.first) if self.each_pair else v[:, :-1]  # the last field is no pair's first
        left = torch.einsum("bnk,nkl->bnl", left, self.weight.expand(left.shape[1], -1, -1))
        return (left if self.each_pair else left.index_select(1, self.first)) * v.index_select(1, self.second)


class FiBiNET(nn.Module):
    """A linear part, and a deep network on the crossed fields: [linear, a_L].

    The defaults are the paper's for Criteo (section 4.1): reduction ratio 3, three layers of 400, ReLU, dropout 0.5; the field
    type that is best there (table 4); and the combination that it prefers for deep models (section 4.3), a Hadamard product of
    the original vectors, the bilinear function of the re-weighted ones. original: what crosses the original vectors.
    shared_weights: all towers of this type have the same linear weights of ids.
    """

    logits = 1

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        bilinear: Literal["field_all", "field_each", "field_interaction"] = "field_interaction",
        original: Literal["hadamard", "bilinear"] = "hadamard",
        reduction_ratio: espace.Count = 3,
        hidden_units: list[espace.Count] = [400, 400, 400],  # noqa: B006, it is read only
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.5,
        norm: espace.Norm = "none",
        shared_weights: bool = False,
    ) -> None:
        super().__init__()
        self.fields = espace.FieldMatrix(spec)
        fields, width = len(self.fields.fields), self.fields.width
        if fields < 2:
            raise ValueError(
                f"it crosses pairs of fields, but sees only '{', '.join(self.fields.fields)}'. Give it two features; behind"
                " experts, which give one vector, set another tower under towers, such as towers: {click: mlp}."
            )
        self.first_order = espace.FirstOrder(spec, "first order" if shared_weights else None)
        self.senet = SENET(fields, reduction_ratio)
        self.original = BilinearPairs(fields, width, bilinear) if original == "bilinear" else Pairs(fields)
        self.reweighted = BilinearPairs(fields, width, bilinear)
        crossed = fields * (fields - 1) * width  # pairs of both
        self.deep = espace.dense(crossed, hidden_units, activation=activation, dropout=dropout, norm=norm)
        self.out_features = 1 + (hidden_units or [crossed])[-1]

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, 1 + the last of hidden_units)."""
        e = self.fields(features)  # (batch, fields, width)
        crossed = torch.cat([self.original(e), self.reweighted(self.senet(e))], dim=1)  # (batch, 2 pairs, width)
        return torch.cat([self.first_order(features), self.deep(crossed.flatten(1))], dim=1)
