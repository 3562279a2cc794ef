"""What the tests of papers share: plain probabilities and labels, and how they get into espace's chain and objective.

Equations and losses are written out in each paper's own test, from these plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espace.chain.chain import Chain
from espace.chain.probability import Probabilities
from espace.data.batch import Batch
from espace.data.encoding.labels import resolve
from espace.training.judging import Terms

ROWS = 500


def rates(count: int, seed: int = 0) -> list[Tensor]:
    """Probabilities between 0.001 and 0.999, (ROWS,) float64 each."""
    random = np.random.default_rng(seed)
    return [torch.tensor(random.uniform(0.001, 0.999, ROWS)) for _ in range(count)]


def coins(count: int, seed: int = 1) -> list[Tensor]:
    """Independent events of probability 0.6, (ROWS,) boolean each."""
    random = np.random.default_rng(seed)
    return [torch.tensor(random.random(ROWS) < 0.6) for _ in range(count)]


def model(chain: Chain, given: Mapping[str, Tensor], joint: Collection[str] = ()) -> Probabilities:
    """The chain with P(outcome given parent) as given: `{transition: (ROWS,)}`, or (ROWS, K) where it has K outcomes.

    joint: stages of which P(stage) is given instead.
    """
    return Probabilities(chain, {name: _logits(p) for name, p in given.items()}, joint=joint)


def _logits(p: Tensor) -> Tensor:
    if p.dim() == 1:
        p = p[:, None]
    return torch.log(p) - torch.log(1 - p.sum(1, keepdim=True))


def entropy(y: Tensor, p: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p), (rows,)."""
    return -torch.where(y.bool(), torch.log(p), torch.log(1 - p))


def loss(objective: Any, p: Probabilities, happened: Mapping[str, Tensor]) -> Tensor:
    """The sum of the objective's terms. happened: `{labelled stage: (rows,)}`, as the columns of a table would have it."""
    raw = {stage: label.numpy().astype(np.int8) for stage, label in happened.items()}
    resolved = resolve(p.chain, raw, "error")
    assert not resolved.broken.any()
    labels = torch.from_numpy(resolved.values)
    rows = len(labels)
    batch = Batch(torch.empty(rows, 0), {}, torch.empty(rows, 0), labels, torch.ones(rows), {})
    return torch.stack(list(Terms.of(objective, p, batch).means().values())).sum()


def gradient(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """d value / d at, of the shape of `at`."""
    leaf = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(leaf).sum(), leaf)
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
