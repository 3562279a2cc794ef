"""How often a sampler uses each row, by what happened in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from espace.chain.chain import Chain
from espace.chain.labels import Labels


def times_used(chain: Chain, labels: Tensor, rates: Mapping[str, Sequence[float]]) -> Tensor:
    """How often each row is used on average: (rows,) float32, the product of the rates of the classes on its path.

    A row that counts with the inverse stands for those that were left out, so that whatever is learnt, of transitions
    beside the sampled ones too, is that of the rows before sampling. Rows whose class is not known are used once.

    labels: (rows, stages but the root) int8; rates: `{transition: a rate for each outcome, and for else or nothing}`.
    """
    used, found = torch.ones(len(labels)), Labels(chain, labels)
    for t in (t for t in chain.transitions if t.name in rates):
        reached = found.of(t.parent) == 1
        outcomes = torch.stack([found.of(o) for o in t.outcomes])  # (outcomes, rows)
        classes = [*(outcomes == 1), (outcomes == 0).all(0)]
        for here, rate in zip(classes, rates[t.name], strict=True):
            used = torch.where(reached & here, used * rate, used)
    return used
