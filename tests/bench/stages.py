"""What a step costs as a chain gets longer, and how much of it is the algebra of the chain.

    python -m tests.bench.stages [--stages 2 4 8 16] [--shape straight|crossed] [--batch 8192] [--rounds 5] [--threads 1]

A whole step is one of `espace fit`: 23 id features of 1.01 million ids, dim 18, one tower of 360-200-80 for every transition,
the entire-space objective, reading, logging and progress included. The algebra is `Probabilities` and the objective, forward and
backward from the logits. `crossed` has two lanes that cross at every layer, so that every stage is a merge of merges. Rounds
are interleaved in one process; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from espace.chain.chain import Chain
from espace.chain.probability import Probabilities
from espace.data.batch import Batch
from espace.parts.objectives.entire_space import EntireSpace
from espace.testing import random_labels
from espace.training.judging import Terms
from tests.bench.data import write
from tests.bench.step import with_espace

CALLS = 30


def lines_of(shape: str, stages: int) -> list[str]:
    """A chain with so many labelled stages; a crossed one has an else stage beside each but the first."""
    if shape == "straight":
        return [" -> ".join(["impression", *(f"s{n}" for n in range(stages))])]
    layers = [f"{lane}{n - 1} -> s{n} else o{n}" for n in range(1, stages) for lane in "so"]
    return ["impression -> s0 else o0", *layers]


def table_of(path: Path, chain: Chain, rows: int) -> Path:
    """The rows of `path` with labels of the chain: each class of a transition is as likely as the others."""
    target = path.with_name(f"stages-{len(chain.stages)}-{len(chain.transitions)}-{rows}.parquet")
    if not target.exists():
        table = pq.read_table(path).drop_columns(["click", "conversion"])
        torch.manual_seed(0)
        labels = random_labels(chain, len(table))
        columns = {stage: pa.array(labels.of(stage).numpy().astype(np.int8)) for stage in chain.labelled}
        pq.write_table(
            pa.table({**{n: table[n] for n in table.column_names}, **columns}), target, row_group_size=65_536
        )
    return target


def algebra(chain: Chain, batch: int) -> float:
    """Seconds of the forward and backward pass from the logits to the loss."""
    logits = {t.name: torch.randn(batch, len(t.outcomes), requires_grad=True) for t in chain.transitions}
    labels, objective, times = random_labels(chain, batch).values, EntireSpace(chain), []
    rows = Batch(torch.empty(batch, 0), {}, torch.empty(batch, 0), labels, torch.ones(batch), {})
    for _ in range(CALLS):
        start = time.perf_counter()
        loss = torch.stack(list(Terms.of(objective, Probabilities(chain, logits), rows).means().values())).sum()
        torch.autograd.grad(loss, list(logits.values()))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--shape", choices=["straight", "crossed"], default="straight")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "espace-bench")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = write(options.folder / f"ali-{options.rows}.parquet", options.rows)
    chains = [Chain.parse(lines_of(options.shape, n)) for n in options.stages]
    paths = [table_of(source, chain, options.rows) for chain in chains]
    found: list[list[tuple[float, float]]] = [[] for _ in chains]
    for number in range(options.rounds):
        print(f"round {number}: other processes before it {psutil.cpu_percent(interval=1.0):.0f} %", flush=True)
        for chain, path, times in zip(chains, paths, found, strict=True):
            step = with_espace(path, options.batch, options.steps, chain=chain.lines())
            times.append((step, algebra(chain, options.batch)))
            print(f"  {len(chain.transitions)} transitions: step {times[-1][0] * 1e3:.1f} ms,", end=" ")
            print(f"algebra {times[-1][1] * 1e3:.2f} ms", flush=True)
    print(f"\nbatch {options.batch}, {options.threads} threads, {options.shape}:")
    print("| transitions | step, ms | a transition, ms | algebra, ms | a transition, ms | algebra / step |")
    print("|---|---|---|---|---|---|")
    for chain, times in zip(chains, found, strict=True):
        count = len(chain.transitions)
        step, part = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        share = statistics.median(b / a for a, b in times)
        print(f"| {count} | {step:.1f} | {step / count:.1f} | {part:.2f} | {part / count:.3f} | {share:.2%} |")


if __name__ == "__main__":
    main()
