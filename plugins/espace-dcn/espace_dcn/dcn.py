"""DCN V2 (Wang et al., WWW 2021, arXiv 2008.13535): layers that cross the features with themselves, and a deep network.

    x_{l+1} = x_0 o (W_l x_l + b_l) + x_l                         (1), o: element by element
    W_l = U_l V_l^T, of rank r                                    (2)
    x_{l+1} = sum over i of G_i(x_l) E_i(x_l) + x_l               (3)
    E_i(x_l) = x_0 o (U_l^i V_l^{iT} x_l + b_l)                   (3)
    E_i(x_l) = x_0 o (U_l^i g(C_l^i g(V_l^{iT} x_l)) + b_l)       (4)
    h_{l+1} = f(W_l h_l + b_l)                                    section 3.3
    stacked: h_0 = x_{L_c}; parallel: h_0 = x_0, the vector is [x_{L_c}; h_{L_d}]      section 3.4

x_0 is the flat vector, its fields of any width. The paper does not say whether layers share the gates G_i: here each layer has
its own, linear in x_l before softmax or sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

import espace

Gate: TypeAlias = Literal["softmax", "sigmoid", "constant"]
Nonlinearity: TypeAlias = Literal["none", "hard_tanh", "tanh", "relu"]

_NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "hard_tanh": nn.functional.hardtanh,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


class LowRank(nn.Module):
    """W x + b with W = U V^T, or a gated sum of such experts: what a cross layer multiplies by x_0, (batch, width) to the same.

    Since x_0 is a factor of every expert, the gates are applied where the experts are of width `rank`.
    """

    def __init__(self, width: int, rank: int, experts: int, gate: Gate, nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.shape = (experts, rank)
        self.down = nn.Linear(width, experts * rank, bias=False)  # V^T of every expert
        self.up = nn.Linear(experts * rank, width, bias=False)  # U of every expert
        self.bias = nn.Parameter(torch.zeros(width))
        he_normal(self.down.weight, width)
        he_normal(self.up.weight, rank)
        self.nonlinear = _NONLINEAR.get(nonlinearity)
        self.inner = None if self.nonlinear is None else nn.Parameter(torch.empty(experts, rank, rank))  # C
        if self.inner is not None:
            he_normal(self.inner, rank)
        always_one = gate == "constant" or (gate == "softmax" and experts == 1)
        self.gate = None if always_one else nn.Linear(width, experts)
        self.softmax = gate == "softmax"

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) to (batch, width)."""
        inside = self.down(x).unflatten(1, self.shape)  # (batch, experts, rank)
        if self.nonlinear is not None:
            inside = self.nonlinear(torch.einsum("ber,esr->bes", self.nonlinear(inside), self.inner))
        if self.gate is None:
            gates = inside.new_ones(len(x), self.shape[0])
        else:
            gates = self.gate(x).softmax(1) if self.softmax else self.gate(x).sigmoid()  # (batch, experts)
        out: Tensor = self.up((gates[..., None] * inside).flatten(1)) + gates.sum(1, keepdim=True) * self.bias
        return out


class DCN(nn.Module):
    """Cross layers below a deep network (stacked) or beside it (parallel); without hidden_units the cross layers alone.

    The defaults are the paper's best for Criteo (table 6): 2 full cross layers, then 2 layers of 768, ReLU. Its mixture there has
    3 cross layers of 4 experts, a rank of 258 of all four together, a constant gate and hard_tanh, then 2 layers of 512.

    rank: that of the cross layers' matrices, full if null; a quarter of the input's width lost no accuracy (section 8).
    experts, gate, nonlinearity: of cross layers that have a rank; constant is a gate of 1, and softmax over one expert is too.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        cross_layers: espace.Count = 2,
        rank: espace.Count | None = None,
        experts: espace.Count = 1,
        gate: Gate = "softmax",
        nonlinearity: Nonlinearity = "none",
        structure: Literal["stacked", "parallel"] = "stacked",
        hidden_units: list[espace.Count] = [768, 768],  # noqa: B006, it is read only
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.0,
        norm: espace.Norm = "none",
    ) -> None:
        super().__init__()
        if rank is None and (experts, gate, nonlinearity) != (1, "softmax", "none"):
            raise ValueError(
                f"experts: {experts}, gate: {gate}, nonlinearity: {nonlinearity} are of cross layers with a rank."
                f" Set rank, for instance to {max(1, spec.width // 4)}, a quarter of the input's width, or leave them out."
            )
        if structure == "parallel" and not hidden_units:
            raise ValueError(
                "structure: parallel needs hidden_units. Give some, or leave structure out for the cross layers alone."
            )
        self.cross = nn.ModuleList(
            full(spec.width) if rank is None else LowRank(spec.width, rank, experts, gate, nonlinearity)
            for _ in range(cross_layers)
        )
        self.deep = espace.dense(spec.width, hidden_units, activation=activation, dropout=dropout, norm=norm)
        self.parallel = structure == "parallel"
        self.out_features = (hidden_units or [spec.width])[-1] + spec.width * self.parallel

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, out_features)."""
        x0 = x = features.flat()  # (batch, spec.width)
        for layer in self.cross:
            x = x0 * layer(x) + x
        out: Tensor = torch.cat([x, self.deep(x0)], dim=1) if self.parallel else self.deep(x)
        return out


def full(width: int) -> nn.Linear:
    """W x + b with a full matrix."""
    layer = nn.Linear(width, width)
    he_normal(layer.weight, width)
    nn.init.zeros_(layer.bias)
    return layer


def he_normal(weight: Tensor, inputs: int) -> None:
    """The paper's initialisation (section 7.1.3), for a matrix that reads `inputs` numbers."""
    nn.init.normal_(weight, std=(2 / inputs) ** 0.5)
