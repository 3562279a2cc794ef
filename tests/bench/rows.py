"""What a step on the rows of a large table costs, and what catching up adds: CPU time of LazyAdam alone, one thread.

    python -m tests.bench.rows [--batch 1024] [--steps 1000]

23 look-ups a row of the batch into 1.01 million rows of width 18, small ids more often. Medians over each fifth of the steps,
since in the first ones most missed steps are added up one by one.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from espace.training.optim import LazyAdam
from tests.bench.data import SIZES

OFFSETS = np.concatenate([[0], np.cumsum(SIZES)[:-1]])


def look_ups(batch: int, random: np.random.Generator) -> Tensor:
    """Row numbers, (batch x fields,)."""
    ids = np.array(SIZES) * random.random((batch, len(SIZES))) ** 3
    return torch.from_numpy((OFFSETS + ids.astype(np.int64)).ravel())


def measure(batch: int, steps: int, exact: bool) -> tuple[list[float], list[float]]:
    """Milliseconds of every catching up and of every step, (steps,) each."""
    random, table = np.random.default_rng(0), nn.Parameter(0.01 * torch.randn(sum(SIZES), 18))
    optimizer = LazyAdam([table], exact=exact)
    times: tuple[list[float], list[float]] = [], []
    for _ in range(steps):
        rows = look_ups(batch, random)
        values = 1e-5 * torch.randn(len(rows), 18)
        start = time.process_time()
        optimizer.catch_up(table, rows)
        times[0].append(1e3 * (time.process_time() - start))
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
        start = time.process_time()
        optimizer.step()
        times[1].append(1e3 * (time.process_time() - start))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for exact in (False, True):
        for what, found in zip(("catching up", "step"), measure(options.batch, options.steps, exact), strict=True):
            fifths = [statistics.median(part) for part in np.array_split(found, 5)]
            print(f"{'exact' if exact else 'lazy'}, {what}: {', '.join(f'{ms:.2f}' for ms in fifths)} ms")


if __name__ == "__main__":
    main()
