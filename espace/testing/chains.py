"""Chains to try a part on, and labels that follow them."""

from __future__ import annotations

import torch

from espace.chain.chain import Chain
from espace.chain.labels import Labels

CHAINS = (
    ["impression -> click -> conversion"],
    ["impression -> click", "click -> cart | wish else browse", "cart -> buy", "wish -> buy", "browse -> buy"],
    ["impression -> click -> conversion => revenue"],
)


def random_labels(chain: Chain, rows: int) -> Labels:
    """Labels drawn down the chain, every class of a transition being equally likely; amounts are lognormal."""
    happened = {chain.root: torch.ones(rows, dtype=torch.bool)}
    for stage in chain.stages[1:]:
        happened[stage] = torch.zeros(rows, dtype=torch.bool)
    for transition in chain.transitions:
        drawn = torch.randint(len(transition.classes), (rows,))
        for number, outcome in enumerate(transition.classes):
            if outcome is not None:
                happened[outcome] |= happened[transition.parent] & (drawn == number)
    amounts = [torch.where(happened[v.parent], torch.randn(rows).exp(), torch.nan) for v in chain.values]
    labels = torch.stack([happened[s] for s in chain.stages[1:]], dim=1).to(torch.int8)
    return Labels(chain, labels, torch.stack(amounts, dim=1) if amounts else None)
