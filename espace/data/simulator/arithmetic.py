"""What a simulated world computes with: numbers that belong to a path, softmax, quadrature, intercepts for rates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from espace.chain.chain import Chain
from espace.chain.grammar import Transition

Bits = NDArray[np.int8]


Ints = NDArray[np.int64]


Floats = NDArray[np.float64]


Name = TypeVar("Name")


NODES = 15  # of Gauss-Hermite quadrature over h, for each unit of gamma: P(v given u) is exact to 1e-4 or better


def forward(chain: Chain, rows: int, shares_of: Callable[[Transition, Floats], Floats]) -> dict[str, Floats]:
    """P(stage) of every stage, (rows,). shares_of: (transition, P(parent)) to (classes, rows)."""
    found = {chain.root: np.ones(rows)}
    for transition in chain.transitions:
        reached = found[transition.parent]
        for stage, share in zip(transition.classes, shares_of(transition, reached), strict=True):
            if stage is not None:
                found[stage] = found.get(stage, 0.0) + reached * share
    return found


def add(sums: dict[Name, Floats], weight: float, values: Mapping[Name, Floats]) -> None:
    """Add `weight` times each value to the sum of its name."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + weight * value


def nodes(gamma: float) -> Iterator[tuple[float, float]]:
    """Values of h with their weights; one is enough where h has no effect."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(max(1, NODES * math.ceil(gamma)))
    return zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True)


def number_of(*path: object) -> int:
    """128 bits that belong to this path and to no other."""
    return int.from_bytes(hashlib.blake2b(repr(path).encode(), digest_size=16).digest(), "big")


def random_of(seed: int, *path: object) -> np.random.Generator:
    """Random numbers that belong to this seed and path and to no other."""
    return np.random.Generator(np.random.Philox(number_of(seed, *path)))


def index(random: Floats, number: int) -> Ints:
    """[0, 1) to 0 .. number - 1."""
    return (random * number).astype(np.int64)


def standardised(columns: Floats) -> Floats:
    """Each column to mean 0 and deviation 1, so that groups, being few, differ as much in every world."""
    return np.asarray((columns - columns.mean(0)) / columns.std(0))


def softmax(logits: Floats) -> Floats:
    """(outcomes, rows) to (outcomes + 1, rows), the last being the rest, whose logit is 0."""
    logits = np.concatenate([logits, np.zeros((1, logits.shape[1]))])
    powers = np.exp(logits - logits.max(0))
    return np.asarray(powers / powers.sum(0))


def solve(logits: Floats, weights: Floats, rates: Floats) -> Floats:
    """The intercepts, (outcomes,), at which the weighted mean of the shares is `rates`.

    The mean's log-odds against the rest follow an intercept by less than all of its step, since rows differ; so adding
    to it what they lack comes closer every time.
    """
    wanted = np.log(rates / (1 - rates.sum()))
    found, step = wanted, np.ones(1)
    while np.abs(step).max() > 1e-10:
        means = softmax(logits + found[:, None]) @ weights
        step = wanted - np.log(means[:-1] / means[-1])
        found = found + step
    return np.asarray(found)
