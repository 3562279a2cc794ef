"""No sampling: every row once, with the weight it has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import espace


class NoSampler:
    """Keeps every row."""

    def __init__(self, chain: espace.Chain) -> None:
        self.chain = chain

    def __call__(
        self, labels: NDArray[np.int8], weights: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Positions (rows,) and weights (rows,), as they came."""
        return np.arange(len(labels)), weights


@espace.hookimpl
def register_samplers(register: espace.Register[espace.Sampler]) -> None:
    """Bring `none`."""
    register("none", NoSampler)
