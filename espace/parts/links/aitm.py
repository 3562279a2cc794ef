"""Adaptive information transfer along the chain (AITM, Xi et al., KDD 2021, arXiv 2105.08489).

    z_t = q_t                                                                   where t leaves the root
    z_t = sum over u in {q_t, p_{a,t}} of softmax_u( <h2(u), h3(u)> / sqrt(k) ) h1(u)
    p_{a,t} = relu(G_{a,t} z_a + b)

q_t is the vector of transition t's own tower, k its width, and h1, h2, h3 are linear maps of t from k to k. a is the
transition before t; where several lead to the parent of t, there is a p_{a,t} of each, and one softmax over all of them
and q_t. G also takes z_a to the width k; dropout follows the relu.

The paper's heads estimate P(stage) from z_t (`head: joint`), and an additional loss asks it to be no more than
P(parent) (`objective: ordered`). With heads that are conditional that holds by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

import espace


class Transfer(nn.Module):
    """What the transitions before one hand down, weighed against the vector of its own tower.

    Args:
        width: k.
        before: the widths of the transitions before.
        dropout: of what they hand down.
    """

    def __init__(self, width: int, before: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.handed = nn.ModuleList(espace.dense(wide, [width], dropout=dropout) for wide in before)
        self.h1, self.h2, self.h3 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, own: Tensor, before: Sequence[Tensor]) -> Tensor:
        """q_t (batch, k) and the z_a, (batch, its width) each, to z_t (batch, k)."""
        handed = [hand(z) for hand, z in zip(self.handed, before, strict=True)]
        u = torch.stack([own, *handed], dim=1)  # (batch, 1 + before, k)
        scores = (self.h2(u) * self.h3(u)).sum(2) / math.sqrt(u.shape[2])  # (batch, 1 + before)
        mixed: Tensor = (scores.softmax(1)[..., None] * self.h1(u)).sum(1)
        return mixed


class AITM(nn.Module):
    """Attention, for every transition, over its own vector and those of the transitions that lead to its parent."""

    def __init__(self, chain: espace.Chain, widths: Mapping[str, int], *, dropout: espace.Dropout = 0.0) -> None:
        super().__init__()
        self.before = {t.name: [a.name for a in chain.arrivals(t.parent)] for t in chain.heads}
        self.hops = espace.NamedModules(
            {
                n: Transfer(widths[n], [widths[a] for a in before], dropout)
                for n, before in self.before.items()
                if before
            }
        )
        self.widths = dict(widths)

    def forward(self, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{transition: (batch, width)} to the same, in the order of the chain."""
        found: dict[str, Tensor] = {}
        for name, before in self.before.items():
            own = vectors[name]
            found[name] = self.hops[name](own, [found[a] for a in before]) if before else own
        return found


@espace.hookimpl
def register_links(register: espace.Register[espace.Link]) -> None:
    """Bring `aitm`."""
    register("aitm", AITM)
