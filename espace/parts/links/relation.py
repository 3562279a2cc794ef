"""Relation layers along the chain (DBMTL, Wang et al., 2019, arXiv 1902.09154).

    r_t = q_t                          where t leaves the root
    r_t = MLP_t([q_t, r_a, ...])       a: the transitions that lead to the parent of t

q_t is the vector of transition t's own tower. The paper's Bayesian network between the targets is here the chain.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import espace


class Relation(nn.Module):
    """Dense layers, for every transition, on its own vector beside those of the transitions that lead to its parent.

    Without `hidden_units` a head sees these vectors side by side.
    """

    def __init__(
        self,
        chain: espace.Chain,
        widths: Mapping[str, int],
        *,
        hidden_units: list[espace.Count] = [64],  # noqa: B006, it is read only
        activation: espace.Activation = "relu",
        dropout: espace.Dropout = 0.0,
        norm: espace.Norm = "none",
    ) -> None:
        super().__init__()
        self.before = {t.name: [a.name for a in chain.arrivals(t.parent)] for t in chain.heads}
        self.layers = espace.NamedModules()
        self.widths: dict[str, int] = {}
        for name, before in self.before.items():
            width = widths[name] + sum(self.widths[a] for a in before)
            if before:
                self.layers[name] = espace.dense(width, hidden_units, activation=activation, dropout=dropout, norm=norm)
            self.widths[name] = hidden_units[-1] if before and hidden_units else width

    def forward(self, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{transition: (batch, width)} to {transition: (batch, `widths` of it)}, in the order of the chain."""
        found: dict[str, Tensor] = {}
        for name, before in self.before.items():
            own = vectors[name]
            found[name] = self.layers[name](torch.cat([own, *(found[a] for a in before)], dim=1)) if before else own
        return found


@espace.hookimpl
def register_links(register: espace.Register[espace.Link]) -> None:
    """Bring `relation`."""
    register("relation", Relation)
