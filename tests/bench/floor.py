"""What a training row of the benchmark's model costs at least on this machine: its matrix products, and its bytes.

    python -m tests.bench.floor [--device cpu] [--batch 8192] [--threads 2] [--precision fp32]

The products of both towers, forward and both backward, run at their own shapes at library speed; the rows of the table that
a batch looks up are read and written, with their moments, at the measured bandwidth of copying. Nothing else is counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from tests.bench.peers.common import DIM, FIELDS, HIDDEN

STREAMS = 6  # the row, its two moments, each read and written
ROUNDS = 15


def seconds(work: Callable[[], object], device: str) -> float:
    """The median time of `work`."""
    times, repeats = [], 20 if device == "cuda" else 1  # so often that launches do not count
    for _ in range(ROUNDS):
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(device)
        times.append((time.perf_counter() - start) / repeats)
    return statistics.median(times[3:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def products(batch: int, device: str, kind: torch.dtype) -> float:
    """Seconds of the matrix products of a step: forward, and the gradients of inputs and of weights."""
    total = 0.0
    multiple = 8 if device == "cuda" else 1  # of widths that its matrix units want
    for wide, narrow in itertools.pairwise([-(-DIM * len(FIELDS) // multiple) * multiple, *HIDDEN]):
        x = torch.randn(batch, wide, device=device).to(kind)
        w, g = (torch.randn(n, m, device=device).to(kind) for n, m in ((narrow, wide), (batch, narrow)))
        total += sum(seconds(work, device) for work in (lambda: x @ w.T, lambda: g @ w, lambda: g.T @ x))  # noqa: B023
    return 2 * total  # towers


def bandwidth(device: str) -> float:
    """Bytes a second of a copy, reading and writing counted."""
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def moved(distinct: float) -> float:
    """Bytes of a row of the batch: of its look-ups, of their gradients, and of the update of the rows that are distinct."""
    return 4 * DIM * (2 * len(FIELDS) + STREAMS * distinct)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8_192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument(
        "--distinct", type=float, default=11.0, help="rows of the table looked up, per row of the batch"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = torch.bfloat16 if options.precision == "bf16" else torch.float32
    math = products(options.batch, options.device, kind) / options.batch
    speed = bandwidth(options.device)
    size = moved(options.distinct)
    floor = math + size / speed
    print(
        f"{options.device}, batch {options.batch}, {options.precision}: products {math * 1e6:.2f} us a row,"
        f" {size:,.0f} bytes at {speed / 1e9:.1f} GB/s {size / speed * 1e6:.2f} us a row; at most {1 / floor:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
