"""FinalMLP (Mao et al., AAAI 2023, arXiv 2304.00902): two MLPs that see the embedding through different gates, and their
bilinear fusion.

Stream-specific feature selection, of the embedding e, s being 1 or 2 and o element by element:

    g_s = Gate_s(x_s), an MLP on the embedding of chosen fields, or on a learnt vector
    h_s = 2 sigmoid(g_s) o e
    o_s = MLP_s(h_s)

Stream-level interaction aggregation, o_s being cut into k parts:

    BF(o_1, o_2) = b + w_1 o_1 + w_2 o_2 + o_1^T W_3 o_2
    y = sigmoid(sum over heads j = 1 .. k of BF(o_1j, o_2j))

b, w_1 and w_2 are the head's: it begins with a weight of 1 on the sum over heads of o_1j^T W_j o_2j.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import espace
from espace.errors import did_you_mean


class Gate(nn.Module):
    """2 sigmoid(MLP(x)), x being the fields `names`, or a learnt vector as wide as the widest embedding if there are none.

    (batch, spec.width) with names, else (1, spec.width).
    """

    def __init__(self, spec: espace.FeatureSpec, names: list[str], hidden_units: list[int], option: str) -> None:
        super().__init__()
        widths = {f.name: f.width for f in spec.fields}
        for name in names:
            _check(name, widths, option)
        self.names = names
        width = sum(widths[n] for n in names) or max((f.width for f in spec.categorical), default=spec.width)
        self.vector = None if names else nn.Parameter(torch.randn(1, width))
        self.hidden = espace.dense(width, hidden_units)
        self.out = nn.Linear((hidden_units or [width])[-1], spec.width)

    def forward(self, features: espace.Features) -> Tensor:
        """(batch or 1, spec.width), around 1."""
        x = torch.cat([features.field(n) for n in self.names], dim=1) if self.vector is None else self.vector
        return 2.0 * torch.sigmoid(self.out(self.hidden(x)))


class BilinearFusion(nn.Module):
    """The sum over heads of o_1j^T W_j o_2j: (batch, width_1) and (batch, width_2) to (batch, 1)."""

    def __init__(self, width1: int, width2: int, heads: int) -> None:
        super().__init__()
        if width1 % heads or width2 % heads:
            common = math.gcd(width1, width2)
            raise ValueError(
                f"heads: {heads} heads do not divide the streams' {width1} and {width2} numbers evenly. Set heads to {common},"
                " or to another divisor of it."
            )
        shape = (heads, width1 // heads, width2 // heads)
        self.weight = nn.Parameter(torch.randn(shape) * math.prod(shape) ** -0.5)

    def forward(self, o1: Tensor, o2: Tensor) -> Tensor:
        """(batch, width_1) and (batch, width_2) to (batch, 1)."""
        parts = o1.reshape(len(o1), *self.weight.shape[:2])  # (batch, heads, width_1 / heads)
        crossed = torch.einsum("bhi,hij->bhj", parts, self.weight).flatten(1)  # (batch, width_2)
        return (crossed * o2).sum(1, keepdim=True)


class FinalMLP(nn.Module):
    """Two gated MLP streams and their bilinear fusion: [the sum over heads, o_1, o_2].

    The defaults are those that the authors released for Criteo (BARS, FinalMLP_criteo_x1): streams of 400-400-400 and 1000,
    batch norm, dropout 0.2 and 0.3, gates with one hidden layer of 800, 200 heads. There the contexts are fields of Criteo;
    here they are learnt vectors unless context1 and context2 name fields, such as those of the user and of the item.
    """

    logits = 1

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        hidden_units1: list[espace.Count] = [400, 400, 400],  # noqa: B006, it is read only
        hidden_units2: list[espace.Count] = [1000],  # noqa: B006
        heads: espace.Count = 200,
        context1: list[str] = [],  # noqa: B006
        context2: list[str] = [],  # noqa: B006
        gate_units: list[espace.Count] = [800],  # noqa: B006
        activation: espace.Activation = "relu",
        dropout1: espace.Dropout = 0.2,
        dropout2: espace.Dropout = 0.3,
        norm: espace.Norm = "batch",
    ) -> None:
        super().__init__()
        self.gate1 = Gate(spec, context1, gate_units, "context1")
        self.gate2 = Gate(spec, context2, gate_units, "context2")
        self.stream1 = espace.dense(spec.width, hidden_units1, activation=activation, dropout=dropout1, norm=norm)
        self.stream2 = espace.dense(spec.width, hidden_units2, activation=activation, dropout=dropout2, norm=norm)
        width1, width2 = (hidden_units1 or [spec.width])[-1], (hidden_units2 or [spec.width])[-1]
        self.fusion = BilinearFusion(width1, width2, heads)
        self.out_features = 1 + width1 + width2

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, 1 + the last of hidden_units1 + the last of hidden_units2)."""
        e = features.flat()  # (batch, spec.width)
        o1, o2 = self.stream1(self.gate1(features) * e), self.stream2(self.gate2(features) * e)
        return torch.cat([self.fusion(o1, o2), o1, o2], dim=1)


def _check(name: str, widths: dict[str, int], option: str) -> None:
    if name not in widths:
        raise ValueError(
            f"{option}: there is no field '{name}'.{did_you_mean(name, widths)} Leave {option} empty for a learnt vector;"
            " behind experts it has to be."
        )
    if not widths[name]:
        raise ValueError(
            f"{option}: '{name}' is a sequence that is not pooled, so it has no vector. Give the feature a pool: mean, or leave"
            f" it out of {option}."
        )
