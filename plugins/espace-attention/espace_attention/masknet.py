"""MaskNet (Wang et al., DLP-KDD 2021, arXiv 2102.07619): layers masked by what the whole row says.

V is the embedding, the fields' vectors e_1 .. e_f side by side, and o is element by element:

    mask = W_2 ReLU(W_1 V + b_1) + b_2                             (5), W_1 having r times as many rows as W_2
    LN_EMB(V) = [LN(e_1), ..., LN(e_f)]                            (9), with a gain and a bias for each field
    on the embedding     out = ReLU(LN(W (mask o LN_EMB(V))))      (12)
    on another block     out = ReLU(LN(W (mask o out_before)))     (14)

serial: one block on the embedding, the others each on the one before it. parallel: all blocks on the embedding, then

    H_0 = [out_1, ..., out_u]                                      (15)
    H_l = ReLU(W_l H_{l-1} + b_l)                                  (16)

Every block has a mask of its own, always made of V. The logit (17) is the head's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

import espace


class FieldNorm(nn.Module):
    """Equation 9: every field is normalised on its own. (batch, fields, width) to (batch, fields * width)."""

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(fields, width))
        self.bias = nn.Parameter(torch.zeros(fields, width))

    def forward(self, e: Tensor) -> Tensor:
        """(batch, fields, width) to (batch, fields * width)."""
        return (F.layer_norm(e, e.shape[2:]) * self.gain + self.bias).flatten(1)


class MaskBlock(nn.Module):
    """Equations 12 and 14: (batch, embedding) and (batch, in_features) to (batch, units)."""

    def __init__(self, embedding: int, in_features: int, units: int, reduction_ratio: float, dropout: float) -> None:
        super().__init__()
        aggregated = max(1, round(reduction_ratio * in_features))
        self.aggregate = nn.Linear(embedding, aggregated)
        self.project = nn.Linear(aggregated, in_features)
        self.hidden = nn.Linear(in_features, units, bias=False)
        self.norm = nn.LayerNorm(units)
        self.dropout = nn.Dropout(dropout)

    def forward(self, embedding: Tensor, x: Tensor) -> Tensor:
        """(batch, embedding) and (batch, in_features) to (batch, units)."""
        mask = self.project(torch.relu(self.aggregate(embedding)))  # (batch, in_features)
        out: Tensor = self.dropout(torch.relu(self.norm(self.hidden(mask * x))))
        return out


class MaskNet(nn.Module):
    """Blocks one after the other (SerMaskNet) or side by side below a deep network (ParaMaskNet).

    The defaults are the paper's (section 4.1, table 2): three blocks, reduction ratio 2, layers of 400 with ReLU, no dropout.
    The 400 are said of deep networks, and taken for the blocks too. hidden_units: of the deep network that merges parallel
    blocks; three layers of 400 where nothing is said.
    """

    def __init__(
        self,
        spec: espace.FeatureSpec,
        *,
        structure: Literal["serial", "parallel"] = "serial",
        blocks: espace.Count = 3,
        block_units: espace.Count = 400,
        reduction_ratio: Annotated[float, Gt(0.0)] = 2.0,
        hidden_units: list[espace.Count] | None = None,
        dropout: espace.Dropout = 0.0,
    ) -> None:
        super().__init__()
        self.fields = espace.FieldMatrix(spec)
        fields, width = len(self.fields.fields), self.fields.width
        _check(structure, hidden_units, width)
        serial, embedding = structure == "serial", fields * width
        self.norms = nn.ModuleList(FieldNorm(fields, width) for _ in range(1 if serial else blocks))
        before = [embedding, *[block_units if serial else embedding] * (blocks - 1)]
        self.blocks = nn.ModuleList(MaskBlock(embedding, b, block_units, reduction_ratio, dropout) for b in before)
        units = [400] * 3 if hidden_units is None else hidden_units
        self.deep = None if serial else espace.dense(blocks * block_units, units, dropout=dropout)
        self.out_features = block_units if serial else (units or [blocks * block_units])[-1]

    def forward(self, features: espace.Features) -> Tensor:
        """(batch, block_units) if serial, (batch, the last of hidden_units) if parallel."""
        e = self.fields(features)  # (batch, fields, width)
        embedding = e.flatten(1)
        if self.deep is not None:
            pairs = zip(self.blocks, self.norms, strict=True)
            merged: Tensor = self.deep(torch.cat([block(embedding, norm(e)) for block, norm in pairs], dim=1))
            return merged
        x: Tensor = self.norms[0](e)
        for block in self.blocks:
            x = block(embedding, x)  # (batch, block_units)
        return x


def _check(structure: str, hidden_units: list[int] | None, width: int) -> None:
    if structure == "serial" and hidden_units is not None:
        raise ValueError(
            f"hidden_units {hidden_units} merge parallel blocks, but structure is serial. Set structure: parallel, or leave"
            " hidden_units out; blocks and block_units are the size of a serial one."
        )
    if width == 1:
        raise ValueError(
            "it normalises the numbers of each field, but every field has only one, which would always become 0. Give the"
            " features an embedding of two or more; behind experts let them give a wider vector."
        )
